/// BF16 attention, backward: dq. A block of threads takes 64 * kRowTiles queries of one head and walks over
/// their keys.
#pragma once

#include "ops/cuda/attention_backward.cuh"

namespace quaver::cuda {

/// k is needed until the end of a step: the next one arrives in the other half. v's tile is free earlier.
template <int kWidth, int kRowTiles>
struct QueryGradientTiles {
  static constexpr int kQueries = 16 * kRowTiles * kAttentionWarps;
  static constexpr int kKeys = kRowTiles * kWidth > 128 ? 32 : 64;  // what registers are left for
  static_assert(kQueries % kStatisticsRows == 0);
  bf16 q[kQueries * kPadded<kWidth>], dout[kQueries * kPadded<kWidth>];
  bf16 k[2][kKeys * kPadded<kWidth>], v[kKeys * kPadded<kWidth>];
};

/// The statistics of a query; of none past the last.
__device__ inline QueryStatistics statistics_of(const Workspace& workspace, int batch, int heads, int head,
                                                int query, int last_key) {
  if (query >= workspace.blocks * kStatisticsRows) return {0, 0, kNoKeys};
  return workspace.of(batch, heads, head, query, last_key);
}

/// Over queries [query, query + kQueries).
template <int kQueries>
__device__ FirstKeys first_keys_of_block(const Workspace& workspace, int batch, int query) {
  const int begin = query / kStatisticsRows;
  const int end = min(static_cast<int>(workspace.blocks), begin + kQueries / kStatisticsRows);
  FirstKeys found{INT_MAX, INT_MIN};
  for (int block = begin; block < end; ++block) {
    const FirstKeys& more = workspace.first_keys_of(batch)[block];
    found = {min(found.smallest, more.smallest), max(found.largest, more.largest)};
  }
  return found;
}

/// dp becomes the gradient of the scores, but for the factor `scale`; 0 for keys that are not seen, whatever
/// was computed.
template <int kRowTiles, int kColumns>
__device__ void differentiate_rows(const Accumulators<kRowTiles, kColumns>& products,
                                   Accumulators<kRowTiles, kColumns>& dp,
                                   const QueryStatistics (&statistics)[kRowTiles][2], float scale_log2,
                                   int key, bool masked, int lane) {
  for_elements(dp, [&](int i, int j, int e, float& gradient) {
    const QueryStatistics& query = statistics[i][e / 2];
    gradient = probability(products.at[i][j][e], scale_log2, query.lse) * (gradient - query.delta);
  });
  if (!masked) return;
  for_elements(dp, [&](int i, int j, int e, float& gradient) {
    if (!statistics[i][e / 2].keys.holds(key + 8 * j + column_in_piece(lane, e))) gradient = 0;
  });
}

/// Grid: blocks of queries (the last first), heads, sequences.
template <int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_query_gradients(AttentionArguments<bf16> args, GradientArguments<bf16> gradients) {
  using Tiles = QueryGradientTiles<kWidth, kRowTiles>;
  constexpr int kQueries = Tiles::kQueries, kKeys = Tiles::kKeys;
  auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 32 * 16 * kRowTiles;
  const int head = blockIdx.y, batch = blockIdx.z;
  const int query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int rows = min(kQueries, args.query_len - query);
  const std::int64_t query_row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const auto load_queries = [&](bf16* tile, HeadRows<const bf16> from) {
    load_tile<kQueries, kWidth, kAttentionThreads>(tile, head_rows(from, query_row, head, args.head_dim),
                                                   rows, args.head_dim, args.aligned, thread);
  };
  const auto load_keys = [&](bf16* tile, HeadRows<const bf16> from, int key) {
    load_tile<kKeys, kWidth, kAttentionThreads>(
        tile, head_rows(from, key_row + key, args.kv_head(head), args.head_dim), args.key_len - key,
        args.head_dim, args.aligned, thread);
  };

  QueryStatistics statistics[kRowTiles][2];
  for_rows<kRowTiles>([&](int i, int half) {
    const int of_row = query + warp_row + 16 * i + row_in_piece(lane, 2 * half);
    statistics[i][half] =
        statistics_of(gradients.workspace, batch, args.heads, head, of_row, args.offset() + of_row);
  });
  const FirstKeys first = first_keys_of_block<kQueries>(gradients.workspace, batch, query);
  const int begin = first.smallest / kKeys * kKeys, end = args.offset() + query + rows;

  load_queries(tiles.q, args.q);
  load_queries(tiles.dout, gradients.dout);
  if (begin < end) {
    load_keys(tiles.k[0], args.k, begin);
    load_keys(tiles.v, args.v, begin);
  }

  Accumulators<kRowTiles, kWidth / 8> dq;
  int side = 0;
  for (int key = begin; key < end; key += kKeys, side = 1 - side) {
    const int next = key + kKeys;
    wait_for_copies();
    __syncthreads();
    if (next < end) load_keys(tiles.k[1 - side], args.k, next);
    Accumulators<kRowTiles, kKeys / 8> products, dp;
    multiply_transposed<kWidth>(products, tiles.q + warp_row * kPadded<kWidth>, tiles.k[side], lane);
    multiply_transposed<kWidth>(dp, tiles.dout + warp_row * kPadded<kWidth>, tiles.v, lane);
    const bool masked = key < first.largest || next - 1 > args.offset() + query;
    differentiate_rows(products, dp, statistics, args.scale * kLog2E, key, masked, lane);
    __syncthreads();
    if (next < end) load_keys(tiles.v, args.v, next);
    multiply<kWidth>(dq, dp, tiles.k[side], lane);
  }
  wait_for_copies();  // of queries that see no key
  store_rows<kRowTiles, kWidth>(dq, head_rows(gradients.dq, query_row + warp_row, head, args.head_dim),
                                rows - warp_row, args.head_dim, args.aligned, lane,
                                [&](int, int) { return args.scale; });
  bool has_nan[kRowTiles][2] = {};
  find_nan(dq, has_nan);
  for_nan_rows(has_nan, rows - warp_row, [&](int row) {
    differentiate_query<bf16, kWidth / 32>(args, gradients, batch, head, query + warp_row + row, lane);
  });
}

}  // namespace quaver::cuda
