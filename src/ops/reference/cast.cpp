#include <bit>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {

void ReferenceBackend::cast(const Tensor& x, const Output& output) {
  check_cast(x, output);
  const reference::RealMatrix in(x);
  reference::Producer out(output, x.dtype());
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n) out.store(m, n, in(m, n));
  }
}

void ReferenceBackend::count_exponents(const Tensor& x, const Tensor& counts) {
  check_count_exponents(x, counts);
  const reference::RealMatrix in(x);
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n)
      ++counts.data<std::int64_t>()[std::bit_cast<std::uint32_t>(in(m, n)) >> 23 & 0xFF];
  }
}

}  // namespace quaver
