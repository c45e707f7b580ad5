#include <algorithm>
#include <type_traits>

#include "ops/cuda/attention_arguments.h"
#include "ops/cuda/attention_forward_warpgroup.cuh"
#include "ops/cuda/attention_keys_warpgroup.cuh"
#include "ops/cuda/attention_queries_warpgroup.cuh"

namespace quaver::cuda {
namespace {

int pairs_of(std::int64_t rows, int tile_rows = kWarpgroupTile) {
  return (blocks_of(rows, tile_rows) + 1) / 2;
}

template <typename Tiles>
LaunchShape shape_of(std::int64_t rows, std::int64_t heads, std::int64_t batch,
                     int tile_rows = kWarpgroupTile, int threads = kWarpgroupBlock) {
  static_assert(sizeof(Tiles) <= 227 * 1024, "sm_90 gives a block no more");
  return {dim3(pairs_of(rows, tile_rows), static_cast<unsigned>(heads), static_cast<unsigned>(batch)),
          dim3(threads), sizeof(Tiles)};
}

TileMap map_of_queries(const AttentionShape& shape, const AttentionMatrix& matrix, int tile_rows) {
  return make_tile_map({static_cast<const bf16*>(matrix.data), matrix.stride,
                        static_cast<int>(shape.head_dim), static_cast<int>(shape.heads),
                        static_cast<int>(shape.query_len), static_cast<int>(shape.batch), tile_rows});
}
TileMap map_of_keys(const AttentionShape& shape, const AttentionMatrix& matrix, int tile_rows) {
  return make_tile_map({static_cast<const bf16*>(matrix.data), matrix.stride,
                        static_cast<int>(shape.head_dim), static_cast<int>(shape.kv_heads),
                        static_cast<int>(shape.key_len), static_cast<int>(shape.batch), tile_rows});
}

/// Calls f with a constant: the narrowest width of panels that holds a head.
template <typename F>
void for_panel_width(std::int64_t head_dim, const F& f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>());
  f(std::integral_constant<int, 128>());
}

}  // namespace

int key_gradient_parts(const AttentionShape& shape) {
  constexpr std::int64_t kChipBlocks = 132;  // multiprocessors of an H100; each takes one block
  constexpr std::int64_t kFewestSteps = 4;  // of 128 queries that are worth a block's start and its sums' way
  const std::int64_t blocks = pairs_of(shape.key_len) * shape.kv_heads * shape.batch;
  const std::int64_t steps =
      shape.heads / shape.kv_heads * (blocks_of(shape.query_len, kWarpgroupTile) + 1);  // of a pair
  if (blocks == 0) return 1;
  return static_cast<int>(std::max<std::int64_t>(1, std::min(kChipBlocks / blocks, steps / kFewestSteps)));
}

void launch_warpgroup_attention(const AttentionCall& call, Stream stream) {
  const AttentionShape& shape = call.shape;
  for_panel_width(shape.head_dim, [&](auto width) {
    using Tiles = WarpgroupForwardTiles<width()>;
    launch("attention_forward_warpgroup", attention_forward_warpgroup<width()>,
           shape_of<Tiles>(shape.query_len, shape.heads, shape.batch, Tiles::kQueries, Tiles::kThreads),
           stream, arguments_of<bf16>(call, true), map_of_queries(shape, call.q, Tiles::kQueries),
           map_of_keys(shape, call.k, Tiles::kKeys), map_of_keys(shape, call.v, Tiles::kKeys));
  });
}

void launch_warpgroup_attention_backward(const AttentionCall& call, const AttentionGradients& gradients,
                                         Stream stream) {
  const AttentionShape& shape = call.shape;
  const auto args = arguments_of<bf16>(call, true);
  const int parts = key_gradient_parts(shape);
  const auto more = gradient_arguments<bf16>(shape, gradients, parts);
  for_panel_width(shape.head_dim, [&](auto width) {
    using KeyTiles = WarpgroupKeyTiles<width()>;
    using QueryTiles = WarpgroupQueryTiles<width()>;
    LaunchShape of_keys = shape_of<KeyTiles>(shape.key_len, shape.kv_heads, shape.batch);
    of_keys.blocks.x *= parts;
    launch("attention_keys_warpgroup", attention_keys_warpgroup<width()>, of_keys, stream, args, more,
           map_of_queries(shape, call.q, KeyTiles::kQueries), map_of_keys(shape, call.k, kWarpgroupTile),
           map_of_keys(shape, call.v, kWarpgroupTile),
           map_of_queries(shape, gradients.dout, KeyTiles::kQueries));
    if (parts > 1) {
      const dim3 blocks(blocks_of(shape.key_len, kAttentionWarps), static_cast<unsigned>(shape.kv_heads),
                        static_cast<unsigned>(shape.batch));
      launch("attention_key_sums", attention_key_sums<width() / 32>, {blocks, dim3(kAttentionThreads)},
             stream, args, more);
    }
    launch("attention_queries_warpgroup", attention_queries_warpgroup<width()>,
           shape_of<QueryTiles>(shape.query_len, shape.heads, shape.batch), stream, args, more,
           map_of_queries(shape, call.q, kWarpgroupTile), map_of_keys(shape, call.k, QueryTiles::kKeys),
           map_of_keys(shape, call.v, QueryTiles::kKeys),
           map_of_queries(shape, gradients.dout, kWarpgroupTile));
  });
}

}  // namespace quaver::cuda
