/// BF16 attention by warpgroups, backward: dq. A tile is 128 queries of one head, over 128 keys at a time.
#pragma once

#include "ops/cuda/attention_backward_queries.cuh"
#include "ops/cuda/attention_warpgroup.cuh"

namespace quaver::cuda {

template <int kWidth>
struct WarpgroupQueryTiles {
  static constexpr int kKeys = 128, kStages = 2;
  alignas(1024) bf16 q[kWarpgroupTile * kWidth];
  bf16 dout[kWarpgroupTile * kWidth];
  bf16 k[kStages][kKeys * kWidth], v[kStages][kKeys * kWidth];
  BufferBarriers query_buffer, k_buffers[kStages], v_buffers[kStages];
};

template <int kWidth>
using KeyRing = RingPosition<WarpgroupQueryTiles<kWidth>::kStages>;

/// The keys of a tile of queries: [begin, end), at least one, whether seen or not.
struct KeySpan {
  int query, rows, begin, end;
  FirstKeys first;
};
template <int kKeys>
__device__ KeySpan keys_of_queries(const AttentionArguments<bf16>& args, const Workspace& workspace,
                                   int batch, int tile) {
  const int query = tile * kWarpgroupTile, rows = min(kWarpgroupTile, args.query_len - query);
  const FirstKeys first = first_keys_of_block<kWarpgroupTile>(workspace, batch, query);
  const int end = args.offset() + query + rows;
  return {query, rows, min(first.smallest, end - 1) / kKeys * kKeys, end, first};
}

/// By one thread.
template <int kWidth>
__device__ void produce_keys(WarpgroupQueryTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                             const Workspace& workspace, const TileMap& q, const TileMap& k, const TileMap& v,
                             const TileMap& dout, TilePair pair, int head, int batch) {
  constexpr int kKeys = WarpgroupQueryTiles<kWidth>::kKeys;
  constexpr int kKeyBytes = kKeys * kWidth * sizeof(bf16),
                kQueryBytes = kWarpgroupTile * kWidth * sizeof(bf16);
  KeyRing<kWidth> at;
  RingPosition<1> queries_at;
  for (int t = 0; t < pair.count(); ++t, queries_at.next()) {
    const KeySpan span = keys_of_queries<kKeys>(args, workspace, batch, pair.at(t));
    Barrier& queries_full = open_buffer(&tiles.query_buffer, queries_at, 2 * kQueryBytes);
    copy_tile<kWarpgroupTile, kWidth>(tiles.q, q, head, span.query, batch, queries_full);
    copy_tile<kWarpgroupTile, kWidth>(tiles.dout, dout, head, span.query, batch, queries_full);
    for (int key = span.begin; key < span.end; key += kKeys, at.next()) {
      Barrier& k_full = open_buffer(tiles.k_buffers, at, kKeyBytes);
      copy_tile<kKeys, kWidth>(tiles.k[at.stage()], k, args.kv_head(head), key, batch, k_full);
      Barrier& v_full = open_buffer(tiles.v_buffers, at, kKeyBytes);
      copy_tile<kKeys, kWidth>(tiles.v[at.stage()], v, args.kv_head(head), key, batch, v_full);
    }
  }
}

/// Products become probabilities; 0 for keys from `key` on that are not seen.
template <int kColumns>
__device__ void probabilities_of_rows(Accumulators<1, kColumns>& products,
                                      const QueryStatistics (&statistics)[1][2], float scale_log2, int key,
                                      bool masked, int lane) {
  for_elements(products,
               [&](int, int, int e, float& p) { p = probability(p, scale_log2, statistics[0][e / 2].lse); });
  if (!masked) return;
  for_elements(products, [&](int, int j, int e, float& p) {
    if (!statistics[0][e / 2].keys.holds(key + 8 * j + column_in_piece(lane, e))) p = 0;
  });
}

/// The loop over the keys of one tile of queries, by one consumer. The tensor cores get the next step's products of k
/// right behind this step's of ds, and those of v before the first are ended: they run while probabilities are computed.
/// The gradient of what is not seen is 0 times a number, or the row becomes NaN and is computed again.
template <int kWidth>
__device__ void sum_over_keys(WarpgroupQueryTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                              const KeySpan& span, const SharedRows& q, const SharedRows& dout,
                              const QueryStatistics (&statistics)[1][2], KeyRing<kWidth>& at,
                              Accumulators<1, kWidth / 8>& dq, int lane) {
  constexpr int kKeys = WarpgroupQueryTiles<kWidth>::kKeys, kPieces = kKeys / 8;
  const float scale_log2 = args.scale * kLog2E;
  // The same in every lane, as the compiler must see to keep products running across branches.
  const int begin = __shfl_sync(kAllLanes, span.begin, 0);
  Accumulators<1, kPieces> products, dp;
  PackedRows<kPieces> ds;
  const auto keys_at = [&](auto& buffers) { return SharedRows{buffers[at.stage()], kKeys}; };

  wait_for_buffer(tiles.k_buffers, at);
  wait_for_buffer(tiles.v_buffers, at);
  begin_products();
  start_multiply_transposed<kWidth>(products, q, keys_at(tiles.k));
  end_group();
  start_multiply_transposed<kWidth>(dp, dout, keys_at(tiles.v));
  end_group();
  for (int key = begin;; key += kKeys) {
    const bool masked = key < span.first.largest || key + kKeys - 1 > args.offset() + span.query;
    wait_for_groups<1>();
    products_have_ended(products);
    probabilities_of_rows(products, statistics, scale_log2, key, masked, lane);
    wait_for_groups<0>();
    products_have_ended(dp);
    release_buffer(tiles.v_buffers, at, lane);
    for_elements(dp, [&](int i, int j, int e, float& gradient) {
      gradient = products.at[i][j][e] * (gradient - statistics[i][e / 2].delta);
    });
    ds.pack(dp);
    begin_products();
    start_multiply_packed<kWidth>(dq, ds, keys_at(tiles.k));
    end_group();
    if (key + kKeys >= span.end) break;
    const auto last = at;
    at.next();
    wait_for_buffer(tiles.k_buffers, at);
    wait_for_buffer(tiles.v_buffers, at);
    begin_products();
    start_multiply_transposed<kWidth>(products, q, keys_at(tiles.k));
    end_group();
    wait_for_groups<1>();
    products_have_ended(dq);
    release_buffer(tiles.k_buffers, last, lane);
    begin_products();
    start_multiply_transposed<kWidth>(dp, dout, keys_at(tiles.v));
    end_group();
  }
  wait_for_groups<0>();
  products_have_ended(dq);
  release_buffer(tiles.k_buffers, at, lane);
  at.next();
}

template <int kWidth>
__device__ void consume_keys(WarpgroupQueryTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                             const GradientArguments<bf16>& gradients, TilePair pair, int head, int batch,
                             int consumer, int thread) {
  constexpr int kKeys = WarpgroupQueryTiles<kWidth>::kKeys;
  const int lane = thread % 32, warp_row = consumer * kConsumerRows + thread / 32 * 16;
  const int own = consumer * kConsumerRows * kPanelColumns;
  KeyRing<kWidth> at;
  RingPosition<1> queries_at;
  for (int t = 0; t < pair.count(); ++t, queries_at.next()) {
    const KeySpan span = keys_of_queries<kKeys>(args, gradients.workspace, batch, pair.at(t));
    QueryStatistics statistics[1][2];
    for_rows<1>([&](int i, int half) {
      const int query = span.query + warp_row + row_in_piece(lane, 2 * half);
      statistics[i][half] =
          statistics_of(gradients.workspace, batch, args.heads, head, query, args.offset() + query);
    });
    Accumulators<1, kWidth / 8> dq;
    wait_for_buffer(&tiles.query_buffer, queries_at);
    sum_over_keys<kWidth>(tiles, args, span, {tiles.q + own, kWarpgroupTile},
                          {tiles.dout + own, kWarpgroupTile}, statistics, at, dq, lane);
    release_buffer(&tiles.query_buffer, queries_at, lane);

    const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + span.query + warp_row;
    const int rows = span.rows - warp_row;
    store_rows<1, kWidth>(dq, head_rows(gradients.dq, row, head, args.head_dim), rows, args.head_dim, true,
                          lane, [&](int, int) { return args.scale; });
    bool has_nan[1][2] = {};
    find_nan(dq, has_nan);
    for_nan_rows(has_nan, rows, [&](int of_warp) {
      differentiate_query<bf16, kWidth / 32>(args, gradients, batch, head, span.query + warp_row + of_warp,
                                             lane);
    });
  }
}

/// Grid: pairs of tiles of queries, heads, sequences. The maps' tiles have kWarpgroupTile (q, dout) and kKeys rows.
template <int kWidth>
__global__ void __launch_bounds__(kWarpgroupBlock, 1)
    attention_queries_warpgroup(AttentionArguments<bf16> args, GradientArguments<bf16> gradients,
                                const __grid_constant__ TileMap q, const __grid_constant__ TileMap k,
                                const __grid_constant__ TileMap v, const __grid_constant__ TileMap dout) {
  if constexpr (kChipHasWarpgroups) {
    using Tiles = WarpgroupQueryTiles<kWidth>;
    auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
    const int thread = threadIdx.x % kWarpgroupThreads, warpgroup = warpgroup_of_thread();
    const int head = blockIdx.y, batch = blockIdx.z;
    const TilePair pair = tile_pair((args.query_len + kWarpgroupTile - 1) / kWarpgroupTile, blockIdx.x);
    if (threadIdx.x == 0) {
      begin_buffers(&tiles.query_buffer, 1);
      begin_buffers(tiles.k_buffers, Tiles::kStages);
      begin_buffers(tiles.v_buffers, Tiles::kStages);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 0) {
      give_registers<kProducerRegisters>();
      if (thread == 0) produce_keys(tiles, args, gradients.workspace, q, k, v, dout, pair, head, batch);
    } else {
      take_registers<kConsumerRegisters>();
      consume_keys(tiles, args, gradients, pair, head, batch, warpgroup - 1, thread);
    }
  }
}

}  // namespace quaver::cuda
