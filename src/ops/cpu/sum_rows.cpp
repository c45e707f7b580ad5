#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/partial_sums.h"

namespace quaver {

using namespace cpu;

void CpuBackend::sum_rows(const Tensor& x, const Tensor& sums) {
  check_sum_rows(x, sums);
  const PartialSums partial(*this, x.rows(), x.cols());
  threads_.for_each(partial.blocks(), [&](std::int64_t index) {
    const Piece piece = partial.rows_of_block(index, x.cols());
    kernels_.reductions->sum_rows(real_of(x), piece.extent, part(const_rows(x), piece, real_of(x)),
                                  partial.of_block(index));
  });
  partial.add_to(threads_, *kernels_.reductions, sums);
}

}  // namespace quaver
