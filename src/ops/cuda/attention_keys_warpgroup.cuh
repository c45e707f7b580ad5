/// BF16 attention by warpgroups, backward: dk and dv. A tile is 128 keys of one key/value head; the queries that see
/// them, of every head of the group, come in ascending order, kQueries at a time. Scores are computed transposed, so that
/// a consumer's own rows are keys and probabilities go from its registers to the tensor cores. Where the tiles are few,
/// blocks of threads in several parts share a tile's queries (attention_key_sums.cuh).
#pragma once

#include "ops/cuda/attention_backward_keys.cuh"
#include "ops/cuda/attention_key_sums.cuh"
#include "ops/cuda/attention_warpgroup.cuh"

namespace quaver::cuda {

template <int kWidth>
struct WarpgroupKeyTiles {
  static constexpr int kQueries = kWidth <= 64 ? 128 : 64;  // what registers are left for
  static constexpr int kStages = 3, kStatistics = kQueries / kStatisticsRows;
  static_assert(kQueries % kStatisticsRows == 0);
  alignas(1024) bf16 k[kWarpgroupTile * kWidth];
  bf16 v[kWarpgroupTile * kWidth];
  bf16 q[kStages][kQueries * kWidth], dout[kStages][kQueries * kWidth];
  StatisticsBlock<kStatisticsRows> statistics[kStages][kStatistics];
  struct Step {
    int last_key;  ///< that the first of the queries sees
    int masked;    ///< some query does not see some key of the tile
    int more;      ///< it is not the tile's last
  } steps[kStages];

  /// The same in every lane, as the compiler must see to keep products running across branches.
  __device__ Step step_in_every_lane(int stage) const {
    const Step& step = steps[stage];
    return {__shfl_sync(kAllLanes, step.last_key, 0), __shfl_sync(kAllLanes, step.masked, 0),
            __shfl_sync(kAllLanes, step.more, 0)};
  }

  BufferBarriers key_buffer, query_buffers[kStages];
};

template <int kWidth>
using QueryRing = RingPosition<WarpgroupKeyTiles<kWidth>::kStages>;

/// What a block of threads works on: the pair of tiles, and a part of the queries that see them.
struct KeyTask {
  TilePair tiles;
  int part, kv_head, batch;
};
__device__ inline KeyTask key_task(const AttentionArguments<bf16>& args, const Workspace& workspace) {
  const int pairs = static_cast<int>(gridDim.x) / static_cast<int>(workspace.parts);
  const int x = static_cast<int>(blockIdx.x);
  return {tile_pair((args.key_len + kWarpgroupTile - 1) / kWarpgroupTile, x % pairs), x / pairs,
          static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}

/// The task's queries that see some of the keys of a tile.
template <int kQueries>
__device__ QueryWalk<kQueries> queries_of_keys(const AttentionArguments<bf16>& args,
                                               const Workspace& workspace, const KeyTask& task, int key) {
  const int group = args.heads / args.kv_heads, last_key = min(key + kWarpgroupTile, args.key_len) - 1;
  const int first_query = max(0, key - args.offset()) / kQueries * kQueries;
  QueryWalk<kQueries> walk{workspace.first_keys_of(task.batch),
                           first_query,
                           args.query_len,
                           (task.kv_head + 1) * group,
                           last_key,
                           task.kv_head * group,
                           first_query,
                           static_cast<int>(workspace.parts)};
  walk.settle();
  walk.skip(task.part);
  return walk;
}

/// By one thread. A tile that the task's queries do not see gets one step of queries past the end, so that consumers need
/// no branch around their loop: products do not keep running across what may differ between lanes.
template <int kWidth>
__device__ void produce_queries(WarpgroupKeyTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const Workspace& workspace, const TileMap& q, const TileMap& k,
                                const TileMap& v, const TileMap& dout, const KeyTask& task) {
  constexpr int kQueries = WarpgroupKeyTiles<kWidth>::kQueries;
  constexpr int kTileBytes = kQueries * kWidth * sizeof(bf16),
                kStatisticsBytes = sizeof(WarpgroupKeyTiles<kWidth>::statistics[0]);
  constexpr int kKeyBytes = kWarpgroupTile * kWidth * sizeof(bf16);
  QueryRing<kWidth> at;
  RingPosition<1> keys_at;
  for (int t = 0; t < task.tiles.count(); ++t, keys_at.next()) {
    const int key = task.tiles.at(t) * kWarpgroupTile;
    Barrier& keys_full = open_buffer(&tiles.key_buffer, keys_at, 2 * kKeyBytes);
    copy_tile<kWarpgroupTile, kWidth>(tiles.k, k, task.kv_head, key, task.batch, keys_full);
    copy_tile<kWarpgroupTile, kWidth>(tiles.v, v, task.kv_head, key, task.batch, keys_full);
    auto walk = queries_of_keys<kQueries>(args, workspace, task, key);
    const bool nothing = walk.done();
    if (nothing) walk.stay_at_start();
    for (bool more = true; more; at.next()) {
      auto next = walk;
      next.next();
      more = !nothing && !next.done();
      const int query = nothing ? args.query_len : walk.query;
      const int last_key = nothing ? -kQueries : args.offset() + query;  // none for the last of them too
      const bool masked = walk.first().largest > key || key + kWarpgroupTile - 1 > last_key;
      wait_until_empty(tiles.query_buffers, at);
      tiles.steps[at.stage()] = {last_key, masked, more};
      Barrier& full = tiles.query_buffers[at.stage()].full;
      arrive_expecting(full, 2 * kTileBytes + kStatisticsBytes);
      copy_tile<kQueries, kWidth>(tiles.q[at.stage()], q, walk.head, query, task.batch, full);
      copy_tile<kQueries, kWidth>(tiles.dout[at.stage()], dout, walk.head, query, task.batch, full);
      copy_run(tiles.statistics[at.stage()], workspace.block(task.batch, args.heads, walk.head, walk.query),
               kStatisticsBytes, full);
      walk = next;
    }
  }
}

/// f(j, e, element, block, row) for the elements of a lane, each with the place of its column's statistics.
template <int kColumns, typename F>
__device__ void for_queries(Accumulators<1, kColumns>& products,
                            const StatisticsBlock<kStatisticsRows>* statistics, int lane, const F& f) {
  constexpr int kPieces = kStatisticsRows / 8;
  for_elements(products, [&](int, int j, int e, float& x) {
    f(j, e, x, statistics[j / kPieces], j % kPieces * 8 + column_in_piece(lane, e));
  });
}

/// Products become probabilities; 0 for queries that do not see the key.
template <int kColumns>
__device__ void probabilities_of_columns(Accumulators<1, kColumns>& products,
                                         const StatisticsBlock<kStatisticsRows>* statistics, float scale_log2,
                                         int key, int last_key, bool masked, int lane) {
  for_queries(products, statistics, lane, [&](int, int, float& p, const auto& block, int row) {
    p = probability(p, scale_log2, block.lse[row]);
  });
  if (!masked) return;
  for_queries(products, statistics, lane, [&](int j, int e, float& p, const auto& block, int row) {
    const QueryStatistics query = block.of(row, last_key + 8 * j + column_in_piece(lane, e));
    if (!query.keys.holds(key + row_in_piece(lane, e))) p = 0;
  });
}
/// dp becomes the gradient of the scores, but for the factor `scale`. p is read as the product with dout reads it,
/// rounded, which leaves registers for it. It is 0 where a query does not see the key, and so is the gradient, if dp and
/// delta are numbers; if not, the row of keys becomes NaN and is computed again.
template <int kColumns>
__device__ void differentiate_columns(const PackedRows<kColumns>& p, Accumulators<1, kColumns>& dp,
                                      const StatisticsBlock<kStatisticsRows>* statistics, int lane) {
  for_queries(dp, statistics, lane, [&](int j, int e, float& gradient, const auto& block, int row) {
    gradient = p.element(j, e) * (gradient - block.delta[row]);
  });
}

/// The loop over the queries of one tile of keys, by one consumer. The tensor cores get the next
/// step's products of q right behind this step's of ds, and those of dout before the first are ended: they run while
/// probabilities are computed.
template <int kWidth>
__device__ void sum_over_queries(WarpgroupKeyTiles<kWidth>& tiles, const SharedRows& k, const SharedRows& v,
                                 QueryRing<kWidth>& at, float scale_log2, int key,
                                 Accumulators<1, kWidth / 8>& dk, Accumulators<1, kWidth / 8>& dv, int lane) {
  constexpr int kQueries = WarpgroupKeyTiles<kWidth>::kQueries, kPieces = kQueries / 8;
  const auto rows_at = [&](auto& buffers) { return SharedRows{buffers[at.stage()], kQueries}; };
  Accumulators<1, kPieces> products, dp;
  PackedRows<kPieces> p, ds;
  wait_for_buffer(tiles.query_buffers, at);
  begin_products();
  start_multiply_transposed<kWidth>(products, k, rows_at(tiles.q));
  end_group();
  start_multiply_transposed<kWidth>(dp, v, rows_at(tiles.dout));
  end_group();
  while (true) {
    const auto step = tiles.step_in_every_lane(at.stage());
    const auto* statistics = tiles.statistics[at.stage()];
    wait_for_groups<1>();
    products_have_ended(products);
    probabilities_of_columns(products, statistics, scale_log2, key, step.last_key, step.masked, lane);
    p.pack(products);
    begin_products();
    start_multiply_packed<kWidth>(dv, p, rows_at(tiles.dout));
    end_group();
    wait_for_groups<1>();
    products_have_ended(dp);
    differentiate_columns(p, dp, statistics, lane);
    ds.pack(dp);
    wait_for_groups<0>();
    products_have_ended(dv);
    begin_products();
    start_multiply_packed<kWidth>(dk, ds, rows_at(tiles.q));
    end_group();
    if (!step.more) break;
    const auto last = at;
    at.next();
    wait_for_buffer(tiles.query_buffers, at);
    begin_products();
    start_multiply_transposed<kWidth>(products, k, rows_at(tiles.q));
    end_group();
    wait_for_groups<1>();
    products_have_ended(dk);
    release_buffer(tiles.query_buffers, last, lane);
    begin_products();
    start_multiply_transposed<kWidth>(dp, v, rows_at(tiles.dout));
    end_group();
  }
  wait_for_groups<0>();
  products_have_ended(dk);
  release_buffer(tiles.query_buffers, at, lane);
  at.next();
}

/// Stores the rows [0, rows) of a warp's sums, of `width` columns, a multiple of 8.
template <int kWidth>
__device__ void store_sums(const Accumulators<1, kWidth / 8>& sum, HeadRows<float> to, int rows, int width,
                           int lane) {
  for_rows<1>([&](int, int half) {
    const int row = row_in_piece(lane, 2 * half);
    if (row >= rows) return;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const float* pair = sum.at[0][j] + 2 * half;
      const int column = 8 * j + column_in_piece(lane, 0);
      if (column < width) *reinterpret_cast<float2*>(to.from(row).data + column) = {pair[0], pair[1]};
    }
  });
}

template <int kWidth>
__device__ void consume_queries(WarpgroupKeyTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const GradientArguments<bf16>& gradients, const KeyTask& task, int consumer,
                                int thread) {
  const Workspace& workspace = gradients.workspace;
  const int kv_head = task.kv_head, batch = task.batch;
  const int lane = thread % 32, warp_row = consumer * kConsumerRows + thread / 32 * 16;
  const int own = consumer * kConsumerRows * kPanelColumns;
  QueryRing<kWidth> at;
  RingPosition<1> keys_at;
  for (int t = 0; t < task.tiles.count(); ++t, keys_at.next()) {
    const int key = task.tiles.at(t) * kWarpgroupTile, rows = args.key_len - key - warp_row;
    Accumulators<1, kWidth / 8> dk, dv;
    wait_for_buffer(&tiles.key_buffer, keys_at);
    sum_over_queries<kWidth>(tiles, {tiles.k + own, kWarpgroupTile}, {tiles.v + own, kWarpgroupTile}, at,
                             args.scale * kLog2E, key + warp_row, dk, dv, lane);
    release_buffer(&tiles.key_buffer, keys_at, lane);

    if (workspace.parts > 1) {
      const auto store = [&](const Accumulators<1, kWidth / 8>& sum, KeyGradient gradient) {
        const auto to = key_sums(args, workspace, batch, kv_head, task.part, gradient);
        store_sums<kWidth>(sum, to.from(key + warp_row), rows, args.head_dim, lane);
      };
      store(dk, KeyGradient::dk);
      store(dv, KeyGradient::dv);
      continue;
    }
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

/// Grid: parts of pairs of tiles of keys, key/value heads, sequences. The maps' tiles have kQueries (q, dout) and
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
    const KeyTask task = key_task(args, gradients.workspace);
    if (threadIdx.x == 0) {
      begin_buffers(&tiles.key_buffer, 1);
      begin_buffers(tiles.query_buffers, Tiles::kStages);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 0) {
      give_registers<kProducerRegisters>();
      if (thread == 0) produce_queries(tiles, args, gradients.workspace, q, k, v, dout, task);
    } else {
      take_registers<kConsumerRegisters>();
      consume_queries(tiles, args, gradients, task, warpgroup - 1, thread);
    }
  }
}

}  // namespace quaver::cuda
