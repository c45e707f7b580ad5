#include "ops/column_scales.h"

#include <algorithm>
#include <vector>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/partial_sums.h"

namespace quaver {

using namespace cpu;

void CpuBackend::column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) {
  check_column_scales(x, scale, inverse);
  const Real real = real_of(x);
  const std::int64_t cols = x.cols();
  // The blocks of rows of a sum; here every block has its maxima.
  const PartialSums partial(*this, x.rows(), cols);
  threads_.for_each(partial.blocks(), [&](std::int64_t index) {
    const Piece piece = partial.rows_of_block(index, cols);
    kernels_.reductions->column_amax(real, piece.extent, part(const_rows(x), piece, real),
                                     partial.of_block(index));
  });
  std::vector<float> amax(static_cast<std::size_t>(cols));
  for (std::int64_t block = 0; block < partial.blocks(); ++block) {
    const float* of_block = partial.of_block(block);
    for (std::size_t n = 0; n < amax.size(); ++n) amax[n] = std::max(amax[n], of_block[n]);
  }
  choose_column_scales(amax, {scale.data<float>(), amax.size()}, {inverse.data<float>(), amax.size()});
}

void CpuBackend::scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) {
  check_scale_columns(x, factors, out);
  const Real real = real_of(x);
  const Pieces pieces = Pieces::of_rows({x.rows(), x.cols()});
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels_.pointwise->scale_columns(real, piece.extent, part(const_rows(x), piece, real),
                                      factors.data<float>(), part(rows_of(out), piece, real));
  });
}

}  // namespace quaver
