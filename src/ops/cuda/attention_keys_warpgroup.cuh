/// BF16 attention by warpgroups, backward: dk and dv. A tile is 128 keys of one key/value head; the queries that see
/// them, of every head of the group, come in ascending order, 64 at a time. Scores are computed transposed, so that a
/// consumer's own rows are keys and probabilities go from its registers to the tensor cores.
#pragma once

#include "ops/cuda/attention_backward_keys.cuh"
#include "ops/cuda/attention_warpgroup.cuh"

namespace quaver::cuda {

template <int kWidth>
struct WarpgroupKeyTiles {
  static constexpr int kQueries = 64, kStages = 3;
  static_assert(kQueries == kStatisticsRows);
  alignas(1024) bf16 k[kWarpgroupTile * kWidth];
  bf16 v[kWarpgroupTile * kWidth];
  bf16 q[kStages][kQueries * kWidth], dout[kStages][kQueries * kWidth];
  QueryStatistics statistics[kStages][kQueries];
  struct Step {
    bool masked;  ///< some query does not see some key of the tile
    bool more;    ///< it is not the tile's last
  } steps[kStages];
  BufferBarriers key_buffer, query_buffers[kStages];
};

template <int kWidth>
using QueryRing = RingPosition<WarpgroupKeyTiles<kWidth>::kStages>;

/// The queries that see some of the keys of a tile.
__device__ inline QueryWalk<kStatisticsRows> queries_of_keys(const AttentionArguments<bf16>& args,
                                                             const Workspace& workspace, int batch,
                                                             int kv_head, int key) {
  const int group = args.heads / args.kv_heads, last_key = min(key + kWarpgroupTile, args.key_len) - 1;
  const int first_query = max(0, key - args.offset()) / kStatisticsRows * kStatisticsRows;
  QueryWalk<kStatisticsRows> walk{workspace.first_keys_of(batch),
                                  first_query,
                                  args.query_len,
                                  (kv_head + 1) * group,
                                  last_key,
                                  kv_head * group,
                                  first_query};
  walk.settle();
  return walk;
}

/// By one thread.
template <int kWidth>
__device__ void produce_queries(WarpgroupKeyTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const Workspace& workspace, const TileMap& q, const TileMap& k,
                                const TileMap& v, const TileMap& dout, TilePair pair, int kv_head,
                                int batch) {
  constexpr int kQueries = WarpgroupKeyTiles<kWidth>::kQueries;
  constexpr int kTileBytes = kQueries * kWidth * sizeof(bf16),
                kStatisticsBytes = kQueries * sizeof(QueryStatistics);
  constexpr int kKeyBytes = kWarpgroupTile * kWidth * sizeof(bf16);
  QueryRing<kWidth> at;
  RingPosition<1> keys_at;
  for (int t = 0; t < pair.count(); ++t, keys_at.next()) {
    const int key = pair.at(t) * kWarpgroupTile;
    Barrier& keys_full = open_buffer(&tiles.key_buffer, keys_at, 2 * kKeyBytes);
    copy_tile<kWarpgroupTile, kWidth>(tiles.k, k, kv_head, key, batch, keys_full);
    copy_tile<kWarpgroupTile, kWidth>(tiles.v, v, kv_head, key, batch, keys_full);
    for (auto walk = queries_of_keys(args, workspace, batch, kv_head, key), next = walk; !walk.done();
         walk = next, at.next()) {
      next.next();
      const bool masked = walk.first().largest > key || key + kWarpgroupTile - 1 > args.offset() + walk.query;
      wait_until_empty(tiles.query_buffers, at);
      tiles.steps[at.stage()] = {masked, !next.done()};
      Barrier& full = tiles.query_buffers[at.stage()].full;
      arrive_expecting(full, 2 * kTileBytes + kStatisticsBytes);
      copy_tile<kQueries, kWidth>(tiles.q[at.stage()], q, walk.head, walk.query, batch, full);
      copy_tile<kQueries, kWidth>(tiles.dout[at.stage()], dout, walk.head, walk.query, batch, full);
      copy_run(tiles.statistics[at.stage()], workspace.of(batch, args.heads, walk.head) + walk.query,
               kStatisticsBytes, full);
    }
  }
}

/// Products become probabilities; 0 for queries that do not see the key.
template <int kColumns>
__device__ void probabilities_of_columns(Accumulators<1, kColumns>& products,
                                         const QueryStatistics* statistics, float scale_log2, int key,
                                         bool masked, int lane) {
  for_elements(products, [&](int, int j, int e, float& p) {
    p = probability(p, scale_log2, statistics[8 * j + column_in_piece(lane, e)]);
  });
  if (!masked) return;
  for_elements(products, [&](int, int j, int e, float& p) {
    if (!statistics[8 * j + column_in_piece(lane, e)].keys.holds(key + row_in_piece(lane, e))) p = 0;
  });
}
/// dp becomes the gradient of the scores, but for the factor `scale`. p is read as the product with dout reads it,
/// rounded, which leaves registers for it.
template <int kColumns>
__device__ void differentiate_columns(const PackedRows<kColumns>& p, Accumulators<1, kColumns>& dp,
                                      const QueryStatistics* statistics, int key, bool masked, int lane) {
  for_elements(dp, [&](int, int j, int e, float& gradient) {
    gradient = p.element(j, e) * (gradient - statistics[8 * j + column_in_piece(lane, e)].delta);
  });
  if (!masked) return;
  for_elements(dp, [&](int, int j, int e, float& gradient) {
    if (!statistics[8 * j + column_in_piece(lane, e)].keys.holds(key + row_in_piece(lane, e))) gradient = 0;
  });
}

/// The loop over the queries of one tile of keys, by one consumer; some query sees some key. Nothing is carried from one
/// step to the next but the sums: they and one step's scores fill the registers.
template <int kWidth>
__device__ void sum_over_queries(WarpgroupKeyTiles<kWidth>& tiles, const SharedRows& k, const SharedRows& v,
                                 QueryRing<kWidth>& at, float scale_log2, int key,
                                 Accumulators<1, kWidth / 8>& dk, Accumulators<1, kWidth / 8>& dv, int lane) {
  constexpr int kQueries = WarpgroupKeyTiles<kWidth>::kQueries, kPieces = kQueries / 8;
  bool more = true;
  while (more) {
    const int stage = at.stage();
    const SharedRows q{tiles.q[stage], kQueries}, dout{tiles.dout[stage], kQueries};
    wait_for_buffer(tiles.query_buffers, at);
    const bool masked = tiles.steps[stage].masked;
    more = tiles.steps[stage].more;
    Accumulators<1, kPieces> products, dp;
    PackedRows<kPieces> p, ds;
    begin_products();
    start_multiply_transposed<kWidth>(products, k, q);
    end_group();
    start_multiply_transposed<kWidth>(dp, v, dout);
    end_group();
    wait_for_groups<1>();
    products_have_ended(products);
    probabilities_of_columns(products, tiles.statistics[stage], scale_log2, key, masked, lane);
    p.pack(products);
    begin_products();
    start_multiply_packed<kWidth>(dv, p, dout);
    end_group();
    wait_for_groups<1>();
    products_have_ended(dp);
    differentiate_columns(p, dp, tiles.statistics[stage], key, masked, lane);
    ds.pack(dp);
    begin_products();
    start_multiply_packed<kWidth>(dk, ds, q);
    end_group();
    wait_for_groups<0>();
    products_have_ended(dv);
    products_have_ended(dk);
    release_buffer(tiles.query_buffers, at, lane);
    at.next();
  }
}

template <int kWidth>
__device__ void consume_queries(WarpgroupKeyTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const GradientArguments<bf16>& gradients, TilePair pair, int kv_head,
                                int batch, int consumer, int thread) {
  const int lane = thread % 32, warp_row = consumer * kConsumerRows + thread / 32 * 16;
  const int own = consumer * kConsumerRows * kPanelColumns;
  QueryRing<kWidth> at;
  RingPosition<1> keys_at;
  for (int t = 0; t < pair.count(); ++t, keys_at.next()) {
    const int key = pair.at(t) * kWarpgroupTile, rows = args.key_len - key - warp_row;
    const bool seen = !queries_of_keys(args, gradients.workspace, batch, kv_head, key).done();
    Accumulators<1, kWidth / 8> dk, dv;
    wait_for_buffer(&tiles.key_buffer, keys_at);
    if (seen) {
      sum_over_queries<kWidth>(tiles, {tiles.k + own, kWarpgroupTile}, {tiles.v + own, kWarpgroupTile}, at,
                               args.scale * kLog2E, key + warp_row, dk, dv, lane);
    }
    release_buffer(&tiles.key_buffer, keys_at, lane);

    const std::int64_t row = static_cast<std::int64_t>(batch) * args.key_len + key + warp_row;
    const auto store = [&](const Accumulators<1, kWidth / 8>& sum, HeadRows<bf16> to, float factor) {
      store_rows<1, kWidth>(sum, head_rows(to, row, kv_head, args.head_dim), rows, args.head_dim, true, lane,
                            [&](int, int) { return factor; });
    };
    store(dk, gradients.dk, args.scale);
    store(dv, gradients.dv, 1);
    bool has_nan[1][2] = {};
    find_nan(dk, has_nan);
    find_nan(dv, has_nan);
    for_nan_rows(has_nan, rows, [&](int of_warp) {
      differentiate_key<bf16, kWidth / 32>(args, gradients, batch, kv_head, key + warp_row + of_warp, lane);
    });
  }
}

/// Grid: pairs of tiles of keys, key/value heads, sequences. The maps' tiles have kQueries (q, dout) and
/// kWarpgroupTile rows.
template <int kWidth>
__global__ void __launch_bounds__(kWarpgroupBlock, 1)
    attention_keys_warpgroup(AttentionArguments<bf16> args, GradientArguments<bf16> gradients,
                             const __grid_constant__ TileMap q, const __grid_constant__ TileMap k,
                             const __grid_constant__ TileMap v, const __grid_constant__ TileMap dout) {
  if constexpr (kChipHasWarpgroups) {
    using Tiles = WarpgroupKeyTiles<kWidth>;
    auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
    const int thread = threadIdx.x % kWarpgroupThreads, warpgroup = warpgroup_of_thread();
    const int kv_head = blockIdx.y, batch = blockIdx.z;
    const TilePair pair = tile_pair((args.key_len + kWarpgroupTile - 1) / kWarpgroupTile);
    if (threadIdx.x == 0) {
      begin_buffers(&tiles.key_buffer, 1);
      begin_buffers(tiles.query_buffers, Tiles::kStages);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 0) {
      give_registers<kProducerRegisters>();
      if (thread == 0) produce_queries(tiles, args, gradients.workspace, q, k, v, dout, pair, kv_head, batch);
    } else {
      take_registers<kConsumerRegisters>();
      consume_queries(tiles, args, gradients, pair, kv_head, batch, warpgroup - 1, thread);
    }
  }
}

}  // namespace quaver::cuda
