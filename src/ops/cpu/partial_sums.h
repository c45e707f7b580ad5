/// Sums over the rows of a matrix: fixed blocks of rows are summed separately, and the blocks' sums are added
/// in ascending order.
#pragma once

#include "base/threads.h"
#include "ops/cpu/kernels/reductions.h"
#include "ops/cpu/work.h"

namespace quaver::cpu {

class PartialSums {
 public:
  /// For sums of `cols` columns over `rows` rows.
  PartialSums(Backend& backend, std::int64_t rows, std::int64_t cols);

  std::int64_t blocks() const { return blocks_; }
  /// The rows of block `index`, all `cols` columns of the summed matrix.
  Piece rows_of_block(std::int64_t index, std::int64_t cols) const;
  float* of_block(std::int64_t index) const { return partials_.data<float>() + index * cols_; }
  /// sums[n] += the blocks' sums.
  void add_to(const Threads& threads, const ReductionKernels& kernels, const Tensor& sums) const;

 private:
  std::int64_t rows_, cols_, blocks_;
  Tensor partials_;
};

}  // namespace quaver::cpu
