#include "ops/column_scales.h"

#include <cmath>
#include <vector>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {

using reference::RealMatrix;

void ReferenceBackend::column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) {
  check_column_scales(x, scale, inverse);
  const RealMatrix x_of(x);
  std::vector<float> amax(static_cast<std::size_t>(x.cols()));
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n) {
      float& largest = amax[static_cast<std::size_t>(n)];
      if (const float magnitude = std::fabs(x_of(m, n)); magnitude > largest) largest = magnitude;
    }
  }
  choose_column_scales(amax, {scale.data<float>(), amax.size()}, {inverse.data<float>(), amax.size()});
}

void ReferenceBackend::scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) {
  check_scale_columns(x, factors, out);
  const RealMatrix x_of(x), product(out);
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n) product.set(m, n, x_of(m, n) * factors.data<float>()[n]);
  }
}

}  // namespace quaver
