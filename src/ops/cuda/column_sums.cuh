/// sums[n] += the sum over rows of f(m, n): blocks of rows, whose number depends on the shape alone, are
/// summed apart, and the partial sums added in ascending order.
#pragma once

#include <array>
#include <cstdint>

#include "ops/cuda/matrix.cuh"
#include "quaver/backend.h"

namespace quaver::cuda {

constexpr int kSumColumns = 32, kSumLanes = 8;  ///< columns, and rows at once, of a block of threads
constexpr std::int64_t kMostRowBlocks = 256;

/// Rows per block: enough blocks to fill a device, few enough partial sums.
constexpr std::int64_t rows_per_block(std::int64_t rows) {
  const std::int64_t even = blocks_for(rows, kMostRowBlocks);
  return even < 32 ? 32 : even;
}

/// partials[(block * kSums + s) * cols + n]. f(m, n, values) sets kSums values.
template <int kSums, typename F>
__global__ void sum_columns_of_block(F f, float* partials, std::int64_t rows, std::int64_t cols,
                                     std::int64_t block_rows) {
  __shared__ float shared[kSums][kSumLanes][kSumColumns];
  const int column = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.y);
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + column;
  const std::int64_t begin = blockIdx.y * block_rows, end = min(rows, begin + block_rows);
  float sums[kSums] = {};
  if (n < cols) {
    for (std::int64_t m = begin + lane; m < end; m += kSumLanes) {
      float values[kSums];
      f(m, n, values);
#pragma unroll
      for (int s = 0; s < kSums; ++s) sums[s] += values[s];
    }
  }
#pragma unroll
  for (int s = 0; s < kSums; ++s) shared[s][lane][column] = sums[s];
  __syncthreads();
  if (lane >= kSums || n >= cols) return;
  float total = 0;
  for (int row = 0; row < kSumLanes; ++row) total += shared[lane][row][column];
  partials[(static_cast<std::int64_t>(blockIdx.y) * kSums + lane) * cols + n] = total;
}

constexpr int kPartialLanes = 32;  ///< at most

/// sums[s][n] += the partial sums partials[(block * kSums + s) * cols + n]: each of a block's lanes (threadIdx.y) sums every
/// blockDim.y-th, then their sums are added in ascending order.
template <int kSums>
__global__ void sum_partial_sums(const float* partials, std::int64_t blocks, std::int64_t cols,
                                 std::array<float*, kSums> sums) {
  __shared__ float shared[kPartialLanes][kSumColumns];
  const int column = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.y);
  const int lanes = static_cast<int>(blockDim.y);
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + column;
  float total = 0;
  if (n < cols) {
#pragma unroll 8
    for (std::int64_t block = lane; block < blocks; block += lanes)
      total += partials[(block * kSums + blockIdx.y) * cols + n];
  }
  shared[lane][column] = total;
  __syncthreads();
  if (lane != 0 || n >= cols) return;
  for (int other = 1; other < lanes; ++other) total += shared[other][column];
  float* to = sums[0];
#pragma unroll
  for (int s = 1; s < kSums; ++s) to = static_cast<int>(blockIdx.y) == s ? sums[s] : to;
  to[n] += total;
}

/// sums[s][n] += the sum over blocks of partials[(block * kSums + s) * cols + n].
template <int kSums>
void add_partial_sums(const char* name, const Tensor& partials, std::int64_t blocks, std::int64_t cols,
                      const std::array<float*, kSums>& sums, Stream stream) {
  launch(
      name, sum_partial_sums<kSums>,
      {dim3(static_cast<unsigned>(blocks_for(cols, kSumColumns)), kSums), dim3(kSumColumns, kPartialLanes)},
      stream, partials.data<float>(), blocks, cols, sums);
}

template <int kSums, typename F>
void add_column_sums(const char* name, const F& f, std::int64_t rows, std::int64_t cols,
                     const std::array<float*, kSums>& sums, Backend& backend, Stream stream) {
  if (rows == 0 || cols == 0) return;
  const std::int64_t block_rows = rows_per_block(rows), blocks = blocks_for(rows, block_rows);
  const Tensor partials = backend.allocate(DType::f32, {blocks * kSums, cols});
  launch(name, sum_columns_of_block<kSums, F>,
         {dim3(static_cast<unsigned>(blocks_for(cols, kSumColumns)), static_cast<unsigned>(blocks)),
          dim3(kSumColumns, kSumLanes)},
         stream, f, partials.data<float>(), rows, cols, block_rows);
  add_partial_sums<kSums>(name, partials, blocks, cols, sums, stream);
}

}  // namespace quaver::cuda
