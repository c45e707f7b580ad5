/// BF16 attention, backward: what both passes share, and the pass over the queries that prepares them.
#pragma once

#include "ops/cuda/attention_forward.cuh"

namespace quaver::cuda {

/// The matrices of a backward beside those of its forward.
template <typename T>
struct GradientArguments {
  HeadRows<const T> dout;
  HeadRows<T> dq, dk, dv;
  Workspace workspace;
};

/// Statistics of kStatisticsRows queries of one head; grid: blocks of queries, heads, sequences.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_statistics(AttentionArguments<T> args, GradientArguments<T> gradients) {
  auto* first_keys = static_cast<int*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int block = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  QueryStatistics* const statistics =
      gradients.workspace.of(batch, args.heads, head) + block * kStatisticsRows;
  for (int row = warp; row < kStatisticsRows; row += kAttentionWarps) {
    const int query = block * kStatisticsRows + row;
    QueryStatistics found{0, 0, visible_keys(args, batch, query)};
    if (query < args.query_len) {
      const std::int64_t at = static_cast<std::int64_t>(batch) * args.query_len + query;
      const auto dout = head_rows(gradients.dout, at, head, args.head_dim);
      const auto out = head_rows(args.out, at, head, args.head_dim);
      for (int d = lane; d < args.head_dim; d += 32)
        found.delta += as_float(dout.data[d]) * as_float(out.data[d]);
      for (int step = 16; step > 0; step /= 2) found.delta += __shfl_xor_sync(kAllLanes, found.delta, step);
      found.lse = kLog2E * args.lse[at * args.lse_stride + head];
    }
    if (lane == 0) {
      statistics[row] = found;
      first_keys[row] = found.keys.first;
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
__device__ inline float probability(float product, float scale_log2, const QueryStatistics& query) {
  return power_of_two(fmaf(product, scale_log2, -query.lse));
}

}  // namespace quaver::cuda
