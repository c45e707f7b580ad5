#include "ops/cpu/partial_sums.h"

#include <algorithm>

namespace quaver::cpu {
namespace {

constexpr std::int64_t kBlockRows = 64;
constexpr std::int64_t kBlockColumns = 1024;  // of the final addition

}  // namespace

PartialSums::PartialSums(Backend& backend, std::int64_t rows, std::int64_t cols)
    : rows_(rows),
      cols_(cols),
      blocks_((rows + kBlockRows - 1) / kBlockRows),
      partials_(backend.allocate(DType::f32, {blocks_, cols})) {}

Piece PartialSums::rows_of_block(std::int64_t index, std::int64_t cols) const {
  const std::int64_t begin = index * kBlockRows;
  return {index, begin, 0, {std::min(kBlockRows, rows_ - begin), cols}};
}

void PartialSums::add_to(const Threads& threads, const ReductionKernels& kernels, const Tensor& sums) const {
  threads.for_blocks(cols_, kBlockColumns, [&](std::int64_t begin, std::int64_t end) {
    kernels.add_partials(blocks_, of_block(0) + begin, cols_, end - begin, sums.data<float>() + begin);
  });
}

}  // namespace quaver::cpu
