/// BF16 attention by warpgroups, forward: tiles of 128 queries of one head over 128 keys at a time. While a tile's
/// scores become probabilities, the tensor cores multiply the last probabilities with their values.
#pragma once

#include "ops/cuda/attention_warpgroup.cuh"

namespace quaver::cuda {

template <int kWidth>
struct WarpgroupForwardTiles {
  static constexpr int kKeys = 128, kStages = 2;
  alignas(1024) bf16 q[2][kWarpgroupTile * kWidth];  // one for each tile of the pair
  bf16 k[kStages][kKeys * kWidth], v[kStages][kKeys * kWidth];
  Barrier q_full[2];
  BufferBarriers k_buffers[kStages], v_buffers[kStages];
  Barrier turns[kConsumers];  // whose products are next
};

/// The consumers start their products by turns, so that one's softmax falls on the other's products.
struct Turn {
  Barrier *own, *other;
  int count;  ///< phases of `own` that have to end before the next turn

  __device__ void wait() {
    wait_for_phase(*own, (count + 1) % 2);
    ++count;
  }
  __device__ void pass(int lane) const {
    if (lane == 0) arrive(*other);
  }
};

/// One tile of queries and the keys [begin, end) that some of them see.
struct QueryTile {
  int query, rows, begin, end;
  FirstKeys first;

  __device__ bool masked(int key, int keys, int offset) const {
    return key < first.largest || key + keys - 1 > offset + query;
  }
};
template <int kKeys>
__device__ QueryTile query_tile(const AttentionArguments<bf16>& args, int batch, int tile, int lane) {
  const int query = tile * kWarpgroupTile, rows = min(kWarpgroupTile, args.query_len - query);
  const FirstKeys first = first_keys_of_queries(args, batch, query, rows, lane);
  return {query, rows, first.smallest / kKeys * kKeys, args.offset() + query + rows, first};
}

template <int kWidth>
__device__ void produce_forward(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const TileMap& q, const TileMap& k, const TileMap& v, TilePair pair, int head,
                                int batch, int lane) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys;
  constexpr int kKeyBytes = kKeys * kWidth * sizeof(bf16),
                kQueryBytes = kWarpgroupTile * kWidth * sizeof(bf16);
  RingPosition<WarpgroupForwardTiles<kWidth>::kStages> at;
  for (int t = 0; t < pair.count(); ++t) {
    const QueryTile tile = query_tile<kKeys>(args, batch, pair.at(t), lane);
    if (lane != 0) continue;
    arrive_expecting(tiles.q_full[t], kQueryBytes);
    copy_tile<kWarpgroupTile, kWidth>(tiles.q[t], q, head, tile.query, batch, tiles.q_full[t]);
    for (int key = tile.begin; key < tile.end; key += kKeys, at.next()) {
      Barrier& k_full = open_buffer(tiles.k_buffers, at, kKeyBytes);
      copy_tile<kKeys, kWidth>(tiles.k[at.stage()], k, args.kv_head(head), key, batch, k_full);
      Barrier& v_full = open_buffer(tiles.v_buffers, at, kKeyBytes);
      copy_tile<kKeys, kWidth>(tiles.v[at.stage()], v, args.kv_head(head), key, batch, v_full);
    }
  }
}

/// Products of the keys from `key` on become probabilities relative to the running maximum (of the products): out is
/// to be multiplied by `shrink`. scale_log2 is positive.
template <int kColumns>
__device__ void softmax_products(Accumulators<1, kColumns>& products, RunningSoftmax<1>& softmax,
                                 float (&shrink)[2], float scale_log2, int key, bool masked, int lane) {
  if (masked) {
    for_elements(products, [&](int, int j, int e, float& product) {
      if (!softmax.keys[0][e / 2].holds(key + 8 * j + column_in_piece(lane, e))) product = -kInfinity;
    });
  }
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float& maximum = softmax.maximum[0][half];
    float larger = maximum;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float* row = products.at[0][j] + 2 * half;
      larger = fmaxf(larger, fmaxf(row[0], row[1]));
    }
    larger = largest_of_row(larger);
    base[half] =
        larger == -kInfinity ? 0.0f : larger * scale_log2;  // nothing seen yet: probabilities 0, not NaN
    shrink[half] = power_of_two(fmaf(maximum, scale_log2, -base[half]));
    maximum = larger;
    softmax.sum[0][half] *= shrink[half];
  }
  for_elements(products, [&](int, int, int e, float& p) {
    p = power_of_two(fmaf(p, scale_log2, -base[e / 2]));
    softmax.sum[0][e / 2] += p;
  });
}

/// The loop over the keys of one tile of queries, by one consumer.
template <int kWidth>
__device__ void attend(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                       const QueryTile& tile, const SharedRows& q,
                       RingPosition<WarpgroupForwardTiles<kWidth>::kStages>& at, RunningSoftmax<1>& softmax,
                       Accumulators<1, kWidth / 8>& out, Turn& turn, int lane) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys;
  const float scale_log2 = args.scale * kLog2E;
  const auto keys_at = [&](auto& buffers) { return SharedRows{buffers[at.stage()], kKeys}; };
  Accumulators<1, kKeys / 8> products;
  PackedRows<kKeys / 8> p;
  float shrink[2];

  wait_for_buffer(tiles.k_buffers, at);
  begin_products();
  start_multiply_transposed<kWidth>(products, q, keys_at(tiles.k));
  end_group();
  wait_for_groups<0>();
  products_have_ended(products);
  release_buffer(tiles.k_buffers, at, lane);
  int key = tile.begin;
  softmax_products(products, softmax, shrink, scale_log2, key, tile.masked(key, kKeys, args.offset()), lane);
  p.pack(products);

  for (key += kKeys; key < tile.end; key += kKeys) {
    auto values_at = at;
    at.next();
    wait_for_buffer(tiles.k_buffers, at);
    turn.wait();
    begin_products();
    start_multiply_transposed<kWidth>(products, q, keys_at(tiles.k));
    end_group();
    wait_for_buffer(tiles.v_buffers, values_at);
    begin_products();
    start_multiply_packed<kWidth>(out, p, SharedRows{tiles.v[values_at.stage()], kKeys});
    end_group();
    turn.pass(lane);
    wait_for_groups<1>();
    products_have_ended(products);
    release_buffer(tiles.k_buffers, at, lane);
    softmax_products(products, softmax, shrink, scale_log2, key, tile.masked(key, kKeys, args.offset()),
                     lane);
    wait_for_groups<0>();
    products_have_ended(out);
    release_buffer(tiles.v_buffers, values_at, lane);
    for_elements(out, [&](int, int, int e, float& sum) { sum *= shrink[e / 2]; });
    p.pack(products);
  }

  wait_for_buffer(tiles.v_buffers, at);
  begin_products();
  start_multiply_packed<kWidth>(out, p, keys_at(tiles.v));
  end_group();
  wait_for_groups<0>();
  products_have_ended(out);
  release_buffer(tiles.v_buffers, at, lane);
  at.next();
}

template <int kWidth>
__device__ void consume_forward(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                TilePair pair, int head, int batch, int consumer, int thread) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys;
  const int lane = thread % 32, warp_row = consumer * kConsumerRows + thread / 32 * 16;
  RingPosition<WarpgroupForwardTiles<kWidth>::kStages> at;
  Turn turn{&tiles.turns[consumer], &tiles.turns[1 - consumer], consumer};
  for (int t = 0; t < pair.count(); ++t) {
    const QueryTile tile = query_tile<kKeys>(args, batch, pair.at(t), lane);
    RunningSoftmax<1> softmax;
    for_rows<1>([&](int i, int half) {
      softmax.maximum[i][half] = -kInfinity;
      softmax.sum[i][half] = 0;
      softmax.keys[i][half] = visible_keys(args, batch, tile.query + warp_row + row_in_piece(lane, 2 * half));
    });
    Accumulators<1, kWidth / 8> out;
    wait_for_phase(tiles.q_full[t], 0);
    if (tile.begin < tile.end) {
      attend<kWidth>(tiles, args, tile,
                     {tiles.q[t] + consumer * kConsumerRows * kPanelColumns, kWarpgroupTile}, at, softmax,
                     out, turn, lane);
    }

    const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + tile.query + warp_row;
    const int rows = tile.rows - warp_row;
    float weight[2];
    for (int half = 0; half < 2; ++half) {
      weight[half] = sum_of_row(softmax.sum[0][half]);
      const int of_warp = row_in_piece(lane, 2 * half);
      if (args.lse && lane % 4 == 0 && of_warp < rows) {
        args.lse[(row + of_warp) * args.lse_stride + head] =
            kLn2 * fmaf(softmax.maximum[0][half], args.scale * kLog2E, log2f(weight[half]));
      }
    }
    store_rows<1, kWidth>(out, head_rows(args.out, row, head, args.head_dim), rows, args.head_dim, true, lane,
                          [&](int, int half) { return 1 / weight[half]; });
    bool has_nan[1][2] = {};
    find_nan(out, has_nan);
    for_nan_rows(has_nan, rows, [&](int of_warp) {
      attend_row<bf16, kWidth / 32>(args, batch, head, tile.query + warp_row + of_warp, lane);
    });
  }
}

/// Grid: pairs of tiles of queries, heads, sequences. The maps' tiles have kWarpgroupTile and kKeys rows.
template <int kWidth>
__global__ void __launch_bounds__(kWarpgroupBlock, 1)
    attention_forward_warpgroup(AttentionArguments<bf16> args, const __grid_constant__ TileMap q,
                                const __grid_constant__ TileMap k, const __grid_constant__ TileMap v) {
  if constexpr (kChipHasWarpgroups) {
    using Tiles = WarpgroupForwardTiles<kWidth>;
    auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
    const int thread = threadIdx.x % kWarpgroupThreads, warpgroup = warpgroup_of_thread();
    const int head = blockIdx.y, batch = blockIdx.z;
    const TilePair pair = tile_pair((args.query_len + kWarpgroupTile - 1) / kWarpgroupTile, blockIdx.x);
    if (threadIdx.x == 0) {
      begin_barrier(tiles.q_full[0], 1);
      begin_barrier(tiles.q_full[1], 1);
      for (Barrier& turn : tiles.turns) begin_barrier(turn, kWarpgroupThreads / 32);
      begin_buffers(tiles.k_buffers, Tiles::kStages);
      begin_buffers(tiles.v_buffers, Tiles::kStages);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 0) {
      give_registers<kProducerRegisters>();
      if (thread < 32) produce_forward(tiles, args, q, k, v, pair, head, batch, thread);
    } else {
      take_registers<kConsumerRegisters>();
      consume_forward(tiles, args, pair, head, batch, warpgroup - 1, thread);
    }
  }
}

}  // namespace quaver::cuda
