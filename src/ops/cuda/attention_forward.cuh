/// BF16 attention, forward: a block of threads takes 64 * kRowTiles queries of one head, 16 * kRowTiles per
/// warp, and walks over their keys, 64 at a time, with a running maximum and sum per query (arXiv
/// 2307.08691).
#pragma once

#include "ops/cuda/attention_single_row.cuh"

namespace quaver::cuda {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = 32 * kAttentionWarps;
constexpr int kForwardKeys = 64;

template <int kWidth, int kRowTiles>
struct ForwardTiles {
  static constexpr int kQueries = 16 * kRowTiles * kAttentionWarps;
  bf16 q[kQueries * kPadded<kWidth>], k[kForwardKeys * kPadded<kWidth>], v[kForwardKeys * kPadded<kWidth>];
  int first_keys[kQueries];
};

/// The running softmax of the rows of one lane; maximum and scores in units of log2.
template <int kRowTiles>
struct RunningSoftmax {
  float maximum[kRowTiles][2], sum[kRowTiles][2];
  KeyRange keys[kRowTiles][2];
};

__device__ inline float largest_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float sum_of_row(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/// The smallest and the largest of all lanes; every lane gets both.
__device__ inline FirstKeys extremes_of_lanes(FirstKeys found) {
  for (int step = 16; step > 0; step /= 2) {
    found.smallest = min(found.smallest, __shfl_xor_sync(kAllLanes, found.smallest, step));
    found.largest = max(found.largest, __shfl_xor_sync(kAllLanes, found.largest, step));
  }
  return found;
}

/// Smallest and largest of numbers in shared memory; every lane of the warp gets both.
template <int kCount>
__device__ FirstKeys extremes(const int* numbers, int lane) {
  FirstKeys found{INT_MAX, INT_MIN};
  for (int i = lane; i < kCount; i += 32) {
    found = {min(found.smallest, numbers[i]), max(found.largest, numbers[i])};
  }
  return extremes_of_lanes(found);
}

/// Products of the keys from `key` on become scores in units of log2; -infinity for keys that are not seen.
template <int kRowTiles, int kColumns>
__device__ void scale_scores(Accumulators<kRowTiles, kColumns>& scores,
                             const RunningSoftmax<kRowTiles>& softmax, float scale, int key, bool masked,
                             int lane) {
  for_elements(scores, [&](int, int, int, float& score) { score *= scale; });
  if (!masked) return;
  for_elements(scores, [&](int i, int j, int e, float& score) {
    if (!softmax.keys[i][e / 2].holds(key + 8 * j + column_in_piece(lane, e))) score = -kInfinity;
  });
}

/// Scores become probabilities relative to the running maximum, to which `out` is rescaled.
template <int kRowTiles, int kColumns, int kOutColumns>
__device__ void softmax_step(Accumulators<kRowTiles, kColumns>& scores, RunningSoftmax<kRowTiles>& softmax,
                             Accumulators<kRowTiles, kOutColumns>& out) {
  float base[kRowTiles][2], shrink[kRowTiles][2];
  for_rows<kRowTiles>([&](int i, int half) {
    float block_maximum = -kInfinity;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float* pair = scores.at[i][j] + 2 * half;
      block_maximum = fmaxf(block_maximum, fmaxf(pair[0], pair[1]));
    }
    float& maximum = softmax.maximum[i][half];
    const float larger = fmaxf(maximum, largest_of_row(block_maximum));
    base[i][half] = larger == -kInfinity ? 0.0f : larger;  // nothing seen yet: probabilities 0, not NaN
    shrink[i][half] = power_of_two(maximum - base[i][half]);
    maximum = larger;
    softmax.sum[i][half] *= shrink[i][half];
  });
  for_elements(scores, [&](int i, int, int e, float& score) {
    score = power_of_two(score - base[i][e / 2]);
    softmax.sum[i][e / 2] += score;
  });
  for_elements(out, [&](int i, int, int e, float& sum) { sum *= shrink[i][e / 2]; });
}

/// Grid: blocks of queries (the last, longest ones first), heads, sequences.
template <int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward(AttentionArguments<bf16> args) {
  using Tiles = ForwardTiles<kWidth, kRowTiles>;
  auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 32 * 16 * kRowTiles;
  const int head = blockIdx.y, batch = blockIdx.z;
  const int query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Tiles::kQueries;
  const int rows = min(Tiles::kQueries, args.query_len - query);
  const std::int64_t query_row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const auto k = head_rows(args.k, key_row, args.kv_head(head), args.head_dim);
  const auto v = head_rows(args.v, key_row, args.kv_head(head), args.head_dim);
  const auto load_keys = [&](bf16* tile, HeadRows<const bf16> from, int key) {
    load_tile<kForwardKeys, kWidth, kAttentionThreads>(tile, from.from(key), args.key_len - key,
                                                       args.head_dim, args.aligned, thread);
  };

  load_tile<Tiles::kQueries, kWidth, kAttentionThreads>(
      tiles.q, head_rows(args.q, query_row, head, args.head_dim), rows, args.head_dim, args.aligned, thread);
  for (int row = thread; row < Tiles::kQueries; row += kAttentionThreads) {
    tiles.first_keys[row] = visible_keys(args, batch, query + min(row, rows - 1)).first;
  }
  __syncthreads();
  const FirstKeys first = extremes<Tiles::kQueries>(tiles.first_keys, lane);
  const int begin = first.smallest / kForwardKeys * kForwardKeys, end = args.offset() + query + rows;
  if (begin < end) load_keys(tiles.k, k, begin);

  RunningSoftmax<kRowTiles> softmax;
  for_rows<kRowTiles>([&](int i, int half) {
    softmax.maximum[i][half] = -kInfinity;
    softmax.sum[i][half] = 0;
    softmax.keys[i][half] =
        visible_keys(args, batch, query + warp_row + 16 * i + row_in_piece(lane, 2 * half));
  });

  Accumulators<kRowTiles, kWidth / 8> out;
  for (int key = begin; key < end; key += kForwardKeys) {
    wait_for_copies();
    __syncthreads();  // the keys have come, and nobody reads the last values any more
    load_keys(tiles.v, v, key);
    Accumulators<kRowTiles, kForwardKeys / 8> scores;
    multiply_transposed<kWidth>(scores, tiles.q + warp_row * kPadded<kWidth>, tiles.k, lane);
    const bool masked = key < first.largest || key + kForwardKeys - 1 > args.offset() + query;
    scale_scores(scores, softmax, args.scale * kLog2E, key, masked, lane);
    softmax_step(scores, softmax, out);
    wait_for_copies();
    __syncthreads();
    if (key + kForwardKeys < end) load_keys(tiles.k, k, key + kForwardKeys);
    multiply<kWidth>(out, scores, tiles.v, lane);
  }

  wait_for_copies();  // of queries that see no key

  float weight[kRowTiles][2];
  for_rows<kRowTiles>([&](int i, int half) {
    weight[i][half] = sum_of_row(softmax.sum[i][half]);
    const int row = warp_row + 16 * i + row_in_piece(lane, 2 * half);
    if (args.lse && lane % 4 == 0 && row < rows) {
      args.lse[(query_row + row) * args.lse_stride + head] =
          kLn2 * (softmax.maximum[i][half] + log2f(weight[i][half]));
    }
  });
  store_rows<kRowTiles, kWidth>(out, head_rows(args.out, query_row + warp_row, head, args.head_dim),
                                rows - warp_row, args.head_dim, args.aligned, lane,
                                [&](int i, int half) { return 1 / weight[i][half]; });
  bool has_nan[kRowTiles][2] = {};
  find_nan(out, has_nan);
  for_nan_rows(has_nan, rows - warp_row, [&](int row) {
    attend_row<bf16, kWidth / 32>(args, batch, head, query + warp_row + row, lane);
  });
}

}  // namespace quaver::cuda
