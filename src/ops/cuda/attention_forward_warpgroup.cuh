/// BF16 attention by warpgroups, forward: tiles of queries of one head, 64 for each consumer, over 128 keys at a time.
/// While a tile's scores become probabilities, the tensor cores multiply the last probabilities with their values.
#pragma once

#include "ops/cuda/attention_warpgroup.cuh"

namespace quaver::cuda {

template <int kWidth>
struct WarpgroupForwardTiles {
  static constexpr int kKeys = 128, kStages = 2;
  static constexpr int kForwardConsumers = kWidth <= 64 ? 3 : 2;  // as many as registers are left for
  static constexpr int kQueries = kForwardConsumers * kConsumerRows;
  static constexpr int kThreads = (kForwardConsumers + 1) * kWarpgroupThreads;
  static constexpr int kRegisters = kForwardConsumers == 3 ? 160 : 240;  // of a consumer's threads
  alignas(1024) bf16 q[2][kQueries * kWidth];                            // one for each tile of the pair
  bf16 k[kStages][kKeys * kWidth], v[kStages][kKeys * kWidth];
  Barrier q_full[2];
  BufferBarriers k_buffers[kStages], v_buffers[kStages];
  Barrier turns[kForwardConsumers];  // whose products are next
};

/// The consumers start their products by turns, so that one's softmax falls on the others' products.
struct Turn {
  Barrier *own, *next;
  int count;  ///< phases of `own` that have to end before the next turn

  __device__ void wait() {
    wait_for_phase(*own, (count + 1) % 2);
    ++count;
  }
  __device__ void pass(int lane) const {
    if (lane == 0) arrive(*next);
  }
};

/// One tile of queries and the keys [begin, end) that some of them see.
struct QueryTile {
  int query, rows, begin, end;
  FirstKeys first;

  /// The part of a consumer: its own queries, and the keys before the last that they see.
  __device__ QueryTile of_consumer(int consumer, int offset) const {
    const int row = consumer * kConsumerRows, own_rows = min(kConsumerRows, rows - row);
    return {query + row, own_rows, begin, own_rows > 0 ? offset + query + row + own_rows : begin, first};
  }
  __device__ bool masked(int key, int keys, int offset) const {
    return key < first.largest || key + keys - 1 > offset + query;
  }
};
template <int kQueries, int kKeys>
__device__ QueryTile query_tile(const AttentionArguments<bf16>& args, int batch, int tile, int lane) {
  const int query = tile * kQueries, rows = min(kQueries, args.query_len - query);
  const FirstKeys first = first_keys_of_queries(args, batch, query, rows, lane);
  return {query, rows, first.smallest / kKeys * kKeys, args.offset() + query + rows, first};
}

template <int kWidth>
using ForwardRing = RingPosition<WarpgroupForwardTiles<kWidth>::kStages>;

template <int kWidth>
__device__ void produce_forward(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                const TileMap& q, const TileMap& k, const TileMap& v, TilePair pair, int head,
                                int batch, int lane) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys,
                kQueries = WarpgroupForwardTiles<kWidth>::kQueries;
  constexpr int kKeyBytes = kKeys * kWidth * sizeof(bf16), kQueryBytes = kQueries * kWidth * sizeof(bf16);
  ForwardRing<kWidth> at;
  for (int t = 0; t < pair.count(); ++t) {
    const QueryTile tile = query_tile<kQueries, kKeys>(args, batch, pair.at(t), lane);
    if (lane != 0) continue;
    arrive_expecting(tiles.q_full[t], kQueryBytes);
    copy_tile<kQueries, kWidth>(tiles.q[t], q, head, tile.query, batch, tiles.q_full[t]);
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

/// The loop over the keys of one consumer's queries, of which they see some.
template <int kWidth>
__device__ void attend(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                       const QueryTile& own, const SharedRows& q, ForwardRing<kWidth>& at,
                       RunningSoftmax<1>& softmax, Accumulators<1, kWidth / 8>& out, Turn& turn, int lane) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys;
  const float scale_log2 = args.scale * kLog2E;
  const auto keys_at = [&](auto& buffers) { return SharedRows{buffers[at.stage()], kKeys}; };
  const auto masked = [&](int key) { return own.masked(key, kKeys, args.offset()); };
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
  int key = own.begin;
  softmax_products(products, softmax, shrink, scale_log2, key, masked(key), lane);
  // The wait for the products with values stands at the start of the loop, not at its end: the compiler would move it up
  // to before the softmax, but not past a branch.
  while (true) {
    wait_for_groups<0>();
    products_have_ended(out);
    if (key > own.begin) release_buffer(tiles.v_buffers, at.last(), lane);
    for_elements(out, [&](int, int, int e, float& sum) { sum *= shrink[e / 2]; });
    p.pack(products);
    key += kKeys;
    if (key >= own.end) break;
    const auto values_at = at;
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
    softmax_products(products, softmax, shrink, scale_log2, key, masked(key), lane);
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

/// Passes over the keys of a tile that a consumer's queries do not see, and over the turns: all of a tile's steps but the
/// first have one.
template <int kWidth>
__device__ void pass_over(WarpgroupForwardTiles<kWidth>& tiles, const QueryTile& tile, const QueryTile& own,
                          ForwardRing<kWidth>& at, Turn& turn, int lane) {
  constexpr int kKeys = WarpgroupForwardTiles<kWidth>::kKeys;
  const int steps = (max(0, own.end - own.begin) + kKeys - 1) / kKeys;
  for (int key = tile.begin + steps * kKeys; key < tile.end; key += kKeys, at.next()) {
    wait_for_buffer(tiles.k_buffers, at);
    release_buffer(tiles.k_buffers, at, lane);
    if (key > tile.begin) {
      turn.wait();
      turn.pass(lane);
    }
    wait_for_buffer(tiles.v_buffers, at);
    release_buffer(tiles.v_buffers, at, lane);
  }
}

/// Stores a warp's rows of the output and their logarithms of sums. Rows that are not numbers are computed again.
template <int kWidth>
__device__ void store_attended(const AttentionArguments<bf16>& args, const Accumulators<1, kWidth / 8>& out,
                               const RunningSoftmax<1>& softmax, int query, int rows, int head, int batch,
                               int lane) {
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + query;
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
  for_nan_rows(has_nan, rows,
               [&](int of_warp) { attend_row<bf16, kWidth / 32>(args, batch, head, query + of_warp, lane); });
}

template <int kWidth>
__device__ void consume_forward(WarpgroupForwardTiles<kWidth>& tiles, const AttentionArguments<bf16>& args,
                                TilePair pair, int head, int batch, int consumer, int thread) {
  using Tiles = WarpgroupForwardTiles<kWidth>;
  const int lane = thread % 32, warp_row = thread / 32 * 16;
  ForwardRing<kWidth> at;
  Turn turn{&tiles.turns[consumer], &tiles.turns[(consumer + 1) % Tiles::kForwardConsumers],
            min(consumer, 1)};
  for (int t = 0; t < pair.count(); ++t) {
    const QueryTile tile = query_tile<Tiles::kQueries, Tiles::kKeys>(args, batch, pair.at(t), lane);
    const QueryTile own = tile.of_consumer(consumer, args.offset());
    RunningSoftmax<1> softmax;
    for_rows<1>([&](int i, int half) {
      softmax.maximum[i][half] = -kInfinity;
      softmax.sum[i][half] = 0;
      softmax.keys[i][half] = visible_keys(args, batch, own.query + warp_row + row_in_piece(lane, 2 * half));
    });
    Accumulators<1, kWidth / 8> out;
    wait_for_phase(tiles.q_full[t], 0);
    if (own.begin < own.end) {
      const SharedRows q{tiles.q[t] + consumer * kConsumerRows * kPanelColumns, Tiles::kQueries};
      attend<kWidth>(tiles, args, own, q, at, softmax, out, turn, lane);
    }
    pass_over<kWidth>(tiles, tile, own, at, turn, lane);
    store_attended<kWidth>(args, out, softmax, own.query + warp_row, own.rows - warp_row, head, batch, lane);
  }
}

/// Grid: pairs of tiles of queries, heads, sequences. The maps' tiles have kQueries and kKeys rows.
template <int kWidth>
__global__ void __launch_bounds__(WarpgroupForwardTiles<kWidth>::kThreads, 1)
    attention_forward_warpgroup(AttentionArguments<bf16> args, const __grid_constant__ TileMap q,
                                const __grid_constant__ TileMap k, const __grid_constant__ TileMap v) {
  if constexpr (kChipHasWarpgroups) {
    using Tiles = WarpgroupForwardTiles<kWidth>;
    auto& tiles = *static_cast<Tiles*>(dynamic_shared_memory());
    const int thread = threadIdx.x % kWarpgroupThreads, warpgroup = warpgroup_of_thread();
    const int head = blockIdx.y, batch = blockIdx.z;
    const TilePair pair = tile_pair((args.query_len + Tiles::kQueries - 1) / Tiles::kQueries, blockIdx.x);
    if (threadIdx.x == 0) {
      begin_barrier(tiles.q_full[0], 1);
      begin_barrier(tiles.q_full[1], 1);
      for (Barrier& turn : tiles.turns) begin_barrier(turn, kWarpgroupThreads / 32);
      begin_buffers(tiles.k_buffers, Tiles::kStages, Tiles::kForwardConsumers);
      begin_buffers(tiles.v_buffers, Tiles::kStages, Tiles::kForwardConsumers);
      publish_barriers();
    }
    __syncthreads();
    if (warpgroup == 0) {
      give_registers<kProducerRegisters>();
      if (thread < 32) produce_forward(tiles, args, q, k, v, pair, head, batch, thread);
    } else {
      take_registers<Tiles::kRegisters>();
      consume_forward(tiles, args, pair, head, batch, warpgroup - 1, thread);
    }
  }
}

}  // namespace quaver::cuda
