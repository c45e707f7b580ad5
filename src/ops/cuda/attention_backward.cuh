/// BF16 attention, backward: what both passes share, and the pass over the queries that prepares them.
#pragma once

#include "ops/cuda/attention_forward.cuh"

namespace quaver::cuda {

constexpr int kRowLanes = 16, kPieceElements = 8;
template <typename T>
struct alignas(16) Piece {
  T at[kPieceElements];
};

/// A lane's share of the sum of a[d] * b[d]: pieces of 8 elements, kRowLanes lanes apart. `aligned`: each lies on 16
/// bytes.
template <typename T>
__device__ float share_of_dot(const T* a, const T* b, int width, bool aligned, int lane_of_row) {
  float sum = 0;
  for (int begin = kPieceElements * lane_of_row; begin < width; begin += kPieceElements * kRowLanes) {
    Piece<T> left, right;
    if (aligned) {
      left = *reinterpret_cast<const Piece<T>*>(a + begin);
      right = *reinterpret_cast<const Piece<T>*>(b + begin);
    } else {
      for (int d = 0; d < kPieceElements; ++d) {
        left.at[d] = begin + d < width ? a[begin + d] : T{};
        right.at[d] = begin + d < width ? b[begin + d] : T{};
      }
    }
#pragma unroll
    for (int d = 0; d < kPieceElements; ++d) sum += as_float(left.at[d]) * as_float(right.at[d]);
  }
  return sum;
}

/// Statistics of kStatisticsRows queries of one head; grid: blocks of queries, heads, sequences.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_statistics(AttentionArguments<T> args, GradientArguments<T> gradients) {
  auto* first_keys = static_cast<int*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int block = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  StatisticsBlock<kStatisticsRows>& statistics =
      *gradients.workspace.block(batch, args.heads, head, block * kStatisticsRows);
  for (int row = thread / kRowLanes; row < kStatisticsRows; row += kAttentionThreads / kRowLanes) {
    const int query = block * kStatisticsRows + row;
    const std::int64_t at = static_cast<std::int64_t>(batch) * args.query_len + query;
    QueryStatistics found{0, 0, visible_keys(args, batch, query)};
    if (query < args.query_len) {
      found.delta = share_of_dot<T>(head_rows(gradients.dout, at, head, args.head_dim).data,
                                    head_rows(args.out, at, head, args.head_dim).data, args.head_dim,
                                    args.aligned, thread % kRowLanes);
      found.lse = kLog2E * args.lse[at * args.lse_stride + head];
    }
    for (int step = kRowLanes / 2; step > 0; step /= 2)
      found.delta += __shfl_xor_sync(kAllLanes, found.delta, step);
    if (thread % kRowLanes == 0) {
      statistics.lse[row] = found.lse;
      statistics.delta[row] = found.keys.first <= found.keys.last ? found.delta : 0;
      statistics.first[row] = first_keys[row] = found.keys.first;
    }
  }
  __syncthreads();
  if (head != 0 || warp != 0) return;
  const FirstKeys found = extremes<kStatisticsRows>(first_keys, lane);
  if (lane == 0) {
    gradients.workspace.first_keys_of(batch)[block] = found;
  }
}

/// exp(score - lse), of a product of q and k.
__device__ inline float probability(float product, float scale_log2, float lse) {
  return power_of_two(fmaf(product, scale_log2, -lse));
}

}  // namespace quaver::cuda
