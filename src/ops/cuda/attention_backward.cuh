/// BF16 attention, backward: what both passes share, and the pass over the queries that prepares them.
#pragma once

#include "ops/cuda/attention_forward.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {

/// The elements of a row of `width` from `begin` on, zeros past its end. `aligned`: they lie on packs.
template <typename T>
__device__ Pack<T, kPack> load_part(const T* row, int begin, int width, bool aligned) {
  Pack<T, kPack> part{};
  if (aligned) {
    if (begin < width) part = *reinterpret_cast<const Pack<T, kPack>*>(row + begin);
    return part;
  }
#pragma unroll
  for (int d = 0; d < kPack; ++d) {
    if (begin + d < width) part.set(d, row[begin + d]);
  }
  return part;
}

template <typename T>
__device__ float dot(const Pack<T, kPack>& a, const Pack<T, kPack>& b) {
  float left[kPack], right[kPack], sum = 0;
  widen(a, left);
  widen(b, right);
#pragma unroll
  for (int d = 0; d < kPack; ++d) sum += left[d] * right[d];
  return sum;
}

/// Statistics of kStatisticsRows queries of one head; grid: blocks of queries, heads, sequences. A row's lanes take a
/// pack each: head_dim <= kRowLanes * kPack. Reads of kRows rows of a thread are started before the first is used.
template <typename T, int kRowLanes>
__global__ void __launch_bounds__(kAttentionThreads, 8)
    attention_statistics(AttentionArguments<T> args, GradientArguments<T> gradients) {
  constexpr int kRowsApart = kAttentionThreads / kRowLanes, kRows = 4;
  static_assert(kStatisticsRows % (kRows * kRowsApart) == 0);
  auto* first_keys = static_cast<int*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int block = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
  const std::int64_t sequence = static_cast<std::int64_t>(batch) * args.query_len;
  StatisticsBlock<kStatisticsRows>& statistics =
      *gradients.workspace.block(batch, args.heads, head, block * kStatisticsRows);
  for (int begin = thread / kRowLanes; begin < kStatisticsRows; begin += kRows * kRowsApart) {
    const auto query_of = [&](int i) { return block * kStatisticsRows + begin + i * kRowsApart; };
    float delta[kRows], lse[kRows];
    KeyRange keys[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int query = query_of(i);
      keys[i] = visible_keys(args, batch, query);
      lse[i] = query < args.query_len ? kLog2E * args.lse[(sequence + query) * args.lse_stride + head] : 0;
    }
    const auto multiply_rows = [&](bool aligned) {
      Pack<T, kPack> left[kRows], right[kRows];
      const int column = thread % kRowLanes * kPack;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const std::int64_t at = sequence + query_of(i);
        const int width = query_of(i) < args.query_len ? args.head_dim : 0;
        left[i] = load_part(head_rows(gradients.dout, at, head, args.head_dim).data, column, width, aligned);
        right[i] = load_part<T>(head_rows(args.out, at, head, args.head_dim).data, column, width, aligned);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) delta[i] = dot(left[i], right[i]);
    };
    args.aligned ? multiply_rows(true) : multiply_rows(false);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int step = kRowLanes / 2; step > 0; step /= 2)
        delta[i] += __shfl_xor_sync(kAllLanes, delta[i], step);
      if (thread % kRowLanes != 0) continue;
      const int row = begin + i * kRowsApart;
      statistics.lse[row] = lse[i];
      statistics.delta[row] = keys[i].first <= keys[i].last ? delta[i] : 0;
      statistics.first[row] = first_keys[row] = keys[i].first;
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
