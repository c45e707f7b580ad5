/// BF16 attention, backward: what both passes share, and the pass over the queries that prepares them.
#pragma once

#include "ops/cuda/attention_forward.cuh"

namespace quaver::cuda {

constexpr int kPieceElements = 8;
template <typename T>
struct alignas(16) Piece {
  T at[kPieceElements];
};

/// The elements of a row of `width` from `begin` on, zeros past its end. `aligned`: they lie on 16 bytes.
template <typename T>
__device__ Piece<T> load_piece(const T* row, int begin, int width, bool aligned) {
  Piece<T> piece{};
  if (aligned) {
    if (begin < width) piece = *reinterpret_cast<const Piece<T>*>(row + begin);
    return piece;
  }
  for (int d = 0; d < kPieceElements && begin + d < width; ++d) piece.at[d] = row[begin + d];
  return piece;
}

template <typename T>
__device__ float dot(const Piece<T>& a, const Piece<T>& b) {
  float sum = 0;
#pragma unroll
  for (int d = 0; d < kPieceElements; ++d) sum += as_float(a.at[d]) * as_float(b.at[d]);
  return sum;
}

/// Statistics of kStatisticsRows queries of one head; grid: blocks of queries, heads, sequences. A row's lanes take a
/// piece each: head_dim <= kRowLanes * kPieceElements. Reads of kRows rows of a thread are started before the first is used.
template <typename T, int kRowLanes>
__global__ void __launch_bounds__(kAttentionThreads)
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
    float delta[kRows];
    const auto multiply_rows = [&](bool aligned) {
      Piece<T> left[kRows], right[kRows];
      const int column = thread % kRowLanes * kPieceElements;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const std::int64_t at = sequence + query_of(i);
        const int width = query_of(i) < args.query_len ? args.head_dim : 0;
        left[i] = load_piece(head_rows(gradients.dout, at, head, args.head_dim).data, column, width, aligned);
        right[i] = load_piece<T>(head_rows(args.out, at, head, args.head_dim).data, column, width, aligned);
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
      const int row = begin + i * kRowsApart, query = query_of(i);
      const KeyRange keys = visible_keys(args, batch, query);
      const bool inside = query < args.query_len;
      statistics.lse[row] = inside ? kLog2E * args.lse[(sequence + query) * args.lse_stride + head] : 0;
      statistics.delta[row] = keys.first <= keys.last ? delta[i] : 0;
      statistics.first[row] = first_keys[row] = keys.first;
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
