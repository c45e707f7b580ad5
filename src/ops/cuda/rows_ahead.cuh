/// Rows that a block works on next, on their way to shared memory: registers hold what it works on now.
#pragma once

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {

/// kRows rows of kMatrices matrices, of which a thread takes pack threadIdx.x. It starts the copies that it waits for, and no
/// other thread reads them: there is no barrier. All threads of a block have room, whether they start copies or not.
template <typename T, int kMatrices, int kRows>
struct RowsAhead {
  using RowPack = Pack<T, kPack>;

  RowPack* slots = nullptr;  ///< size(threads) bytes of shared memory, on 16 bytes
  int threads = 0;           ///< of the block

  static constexpr std::int64_t size(std::int64_t threads) {
    return kMatrices * kRows * threads * std::int64_t{sizeof(RowPack)};
  }
  __device__ RowPack& slot(int matrix, int row) const {
    return slots[(matrix * kRows + row) * threads + static_cast<int>(threadIdx.x)];
  }
  /// Starts copying row `row` and those below it, zeros for rows from `rows` on. What lay there has been taken.
  __device__ void start(int matrix, const Matrix<T>& from, std::int64_t row, std::int64_t rows) const {
    static_assert(sizeof(RowPack) == 16, "a copy brings a pack");
    const std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * kPack;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      copy_16_bytes(&slot(matrix, r), from.address(min(row + r, rows - 1), n), row + r < rows);
  }
  /// After wait_for_copies.
  __device__ void take(int matrix, RowPack (&packs)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) packs[r] = slot(matrix, r);
  }
};

}  // namespace quaver::cuda
