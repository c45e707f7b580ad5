/// BF16 attention, backward: dk and dv. A block of threads takes 64 * kRowTiles keys of one key/value head
/// and walks over the queries that see them, of every head of the group, in ascending order. Scores are
/// computed transposed, so that a warp's own rows are keys and nothing but operands passes through shared
/// memory.
#pragma once

#include "ops/cuda/attention_backward.cuh"

namespace quaver::cuda {

template <int kWidth, int kRowTiles>
struct KeyGradientTiles {
  static constexpr int kKeys = 16 * kRowTiles * kAttentionWarps;
  static constexpr int kQueries = kRowTiles == 2 || kWidth > 96 ? 32 : 64;  // what registers are left for
  static_assert(kStatisticsRows % kQueries == 0);
  struct Queries {
    bf16 q[kQueries * kPadded<kWidth>], dout[kQueries * kPadded<kWidth>];
    StatisticsBlock<kQueries> statistics;
  };
  bf16 k[kKeys * kPadded<kWidth>], v[kKeys * kPadded<kWidth>];
  Queries queries[2];
};

/// The blocks of queries that see some of a block of keys, for one head after another; every `stride`-th of them.
template <int kQueries>
struct QueryWalk {
  const FirstKeys* first_keys;  ///< of the sequence
  int first_query, query_len, end_head, last_key;
  int head, query, stride = 1;

  __device__ bool done() const { return head >= end_head; }
  __device__ FirstKeys first() const {
    FirstKeys found = first_keys[query / kStatisticsRows];
    for (int block = 1; block < kQueries / kStatisticsRows; ++block) {
      const FirstKeys& more = first_keys[query / kStatisticsRows + block];
      found = {min(found.smallest, more.smallest), max(found.largest, more.largest)};
    }
    return found;
  }
  /// At a block that exists, after `done`.
  __device__ void stay_at_start() {
    head = end_head - 1;
    query = 0;
  }
  /// Moves on from blocks that see nothing.
  __device__ void settle() {
    while (!done() && (query >= query_len || first().smallest > last_key)) advance();
  }
  __device__ void next() { skip(stride); }
  __device__ void skip(int blocks) {
    for (int i = 0; i < blocks; ++i) {
      advance();
      settle();
    }
  }

 private:
  __device__ void advance() {
    query += kQueries;
    if (query < query_len) return;
    query = first_query;
    ++head;
  }
};

/// Products become probabilities, and dp the gradient of the scores, but for the factor `scale`; 0 for
/// queries that do not see the key, whatever was computed. `last_key` is the last that the block's first query sees.
template <int kRowTiles, int kColumns>
__device__ void differentiate_columns(Accumulators<kRowTiles, kColumns>& products,
                                      Accumulators<kRowTiles, kColumns>& dp,
                                      const StatisticsBlock<8 * kColumns>& statistics, float scale_log2,
                                      int key, int last_key, bool masked, int lane) {
  for_elements(products, [&](int i, int j, int e, float& p) {
    const int query = 8 * j + column_in_piece(lane, e);
    p = probability(p, scale_log2, statistics.lse[query]);
    dp.at[i][j][e] = p * (dp.at[i][j][e] - statistics.delta[query]);
  });
  if (!masked) return;
  for_elements(products, [&](int i, int j, int e, float& p) {
    const int query = 8 * j + column_in_piece(lane, e);
    if (statistics.of(query, last_key + query).keys.holds(key + 16 * i + row_in_piece(lane, e))) return;
    p = dp.at[i][j][e] = 0;
  });
}

/// Grid: blocks of keys, key/value heads, sequences.
template <int kWidth, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_key_gradients(AttentionArguments<bf16> args, GradientArguments<bf16> gradients) {
  using Tiles = KeyGradientTiles<kWidth, kRowTiles>;
  constexpr int kKeys = Tiles::kKeys, kQueries = Tiles::kQueries;
  auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
  const int thread = threadIdx.x, lane = thread % 32, warp_row = thread / 32 * 16 * kRowTiles;
  const int key = blockIdx.x * kKeys, kv_head = blockIdx.y, batch = blockIdx.z;
  const int keys = min(kKeys, args.key_len - key), group = args.heads / args.kv_heads;
  const std::int64_t query_row = static_cast<std::int64_t>(batch) * args.query_len;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len + key;

  const auto load_keys = [&](bf16* tile, HeadRows<const bf16> from) {
    load_tile<kKeys, kWidth, kAttentionThreads>(tile, head_rows(from, key_row, kv_head, args.head_dim), keys,
                                                args.head_dim, args.aligned, thread);
  };
  const auto load_queries = [&](typename Tiles::Queries& to, int head, int query) {
    const auto load = [&](bf16* tile, HeadRows<const bf16> from) {
      load_tile<kQueries, kWidth, kAttentionThreads>(
          tile, head_rows(from, query_row + query, head, args.head_dim), args.query_len - query,
          args.head_dim, args.aligned, thread);
    };
    load(to.q, args.q);
    load(to.dout, gradients.dout);
    const auto load_statistics = [&](auto& part, const auto& from) {
      constexpr int kPart = kQueries / 4;  // of 4 queries: 16 bytes
      if (thread < kPart) copy_16_bytes(part + 4 * thread, from + query % kStatisticsRows + 4 * thread, true);
    };
    const auto& statistics = *gradients.workspace.block(batch, args.heads, head, query);
    load_statistics(to.statistics.lse, statistics.lse);
    load_statistics(to.statistics.delta, statistics.delta);
    load_statistics(to.statistics.first, statistics.first);
  };

  const int first_query = max(0, key - args.offset()) / kQueries * kQueries;
  QueryWalk<kQueries> walk{gradients.workspace.first_keys_of(batch),
                           first_query,
                           args.query_len,
                           (kv_head + 1) * group,
                           key + keys - 1,
                           kv_head * group,
                           first_query};
  walk.settle();
  load_keys(tiles.k, args.k);
  load_keys(tiles.v, args.v);
  if (!walk.done()) load_queries(tiles.queries[0], walk.head, walk.query);

  Accumulators<kRowTiles, kWidth / 8> dk, dv;
  int side = 0;
  while (!walk.done()) {
    wait_for_copies();
    __syncthreads();
    const auto& queries = tiles.queries[side];
    const int last_key = args.offset() + walk.query;
    const bool masked = walk.first().largest > key || key + kKeys - 1 > last_key;
    walk.next();
    side = 1 - side;
    if (!walk.done()) load_queries(tiles.queries[side], walk.head, walk.query);
    Accumulators<kRowTiles, kQueries / 8> products, dp;
    multiply_transposed<kWidth>(products, tiles.k + warp_row * kPadded<kWidth>, queries.q, lane);
    multiply_transposed<kWidth>(dp, tiles.v + warp_row * kPadded<kWidth>, queries.dout, lane);
    differentiate_columns(products, dp, queries.statistics, args.scale * kLog2E, key + warp_row, last_key,
                          masked, lane);
    multiply<kWidth>(dv, products, queries.dout, lane);
    multiply<kWidth>(dk, dp, queries.q, lane);
  }

  wait_for_copies();  // of keys that no query sees
  const auto store = [&](const Accumulators<kRowTiles, kWidth / 8>& sum, HeadRows<bf16> to, float factor) {
    store_rows<kRowTiles, kWidth>(sum, head_rows(to, key_row + warp_row, kv_head, args.head_dim),
                                  keys - warp_row, args.head_dim, args.aligned, lane,
                                  [&](int, int) { return factor; });
  };
  store(dk, gradients.dk, args.scale);
  store(dv, gradients.dv, 1);
  bool has_nan[kRowTiles][2] = {};
  find_nan(dk, has_nan);
  find_nan(dv, has_nan);
  for_nan_rows(has_nan, keys - warp_row, [&](int row) {
    differentiate_key<bf16, kWidth / 32>(args, gradients, batch, kv_head, key + warp_row + row, lane);
  });
}

}  // namespace quaver::cuda
