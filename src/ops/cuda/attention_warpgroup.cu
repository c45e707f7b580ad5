#include <type_traits>

#include "ops/cuda/attention_arguments.h"
#include "ops/cuda/attention_forward_warpgroup.cuh"
#include "ops/cuda/attention_keys_warpgroup.cuh"
#include "ops/cuda/attention_queries_warpgroup.cuh"

namespace quaver::cuda {
namespace {

template <typename Tiles>
LaunchShape shape_of(std::int64_t rows, std::int64_t heads, std::int64_t batch) {
  static_assert(sizeof(Tiles) <= 227 * 1024, "sm_90 gives a block no more");
  const int pairs = (blocks_of(rows, kWarpgroupTile) + 1) / 2;
  return {dim3(pairs, static_cast<unsigned>(heads), static_cast<unsigned>(batch)), dim3(kWarpgroupBlock),
          sizeof(Tiles)};
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

void launch_warpgroup_attention(const AttentionCall& call, Stream stream) {
  const AttentionShape& shape = call.shape;
  for_panel_width(shape.head_dim, [&](auto width) {
    using Tiles = WarpgroupForwardTiles<width()>;
    launch("attention_forward_warpgroup", attention_forward_warpgroup<width()>,
           shape_of<Tiles>(shape.query_len, shape.heads, shape.batch), stream, arguments_of<bf16>(call, true),
           map_of_queries(shape, call.q, kWarpgroupTile), map_of_keys(shape, call.k, Tiles::kKeys),
           map_of_keys(shape, call.v, Tiles::kKeys));
  });
}

void launch_warpgroup_attention_backward(const AttentionCall& call, const AttentionGradients& gradients,
                                         Stream stream) {
  const AttentionShape& shape = call.shape;
  const auto args = arguments_of<bf16>(call, true);
  const auto more = gradient_arguments<bf16>(shape, gradients);
  for_panel_width(shape.head_dim, [&](auto width) {
    using KeyTiles = WarpgroupKeyTiles<width()>;
    using QueryTiles = WarpgroupQueryTiles<width()>;
    launch("attention_keys_warpgroup", attention_keys_warpgroup<width()>,
           shape_of<KeyTiles>(shape.key_len, shape.kv_heads, shape.batch), stream, args, more,
           map_of_queries(shape, call.q, KeyTiles::kQueries), map_of_keys(shape, call.k, kWarpgroupTile),
           map_of_keys(shape, call.v, kWarpgroupTile),
           map_of_queries(shape, gradients.dout, KeyTiles::kQueries));
    launch("attention_queries_warpgroup", attention_queries_warpgroup<width()>,
           shape_of<QueryTiles>(shape.query_len, shape.heads, shape.batch), stream, args, more,
           map_of_queries(shape, call.q, kWarpgroupTile), map_of_keys(shape, call.k, QueryTiles::kKeys),
           map_of_keys(shape, call.v, QueryTiles::kKeys),
           map_of_queries(shape, gradients.dout, kWarpgroupTile));
  });
}

}  // namespace quaver::cuda
