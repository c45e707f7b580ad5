#include "ops/cuda/attention.h"

#include <initializer_list>
#include <type_traits>

#include "ops/cuda/attention_arguments.h"
#include "ops/cuda/attention_backward_keys.cuh"
#include "ops/cuda/attention_backward_queries.cuh"
#include "ops/cuda/attention_scalar.cuh"

namespace quaver::cuda {
namespace {

LaunchShape shape_of(int blocks, std::int64_t heads, std::int64_t batch, std::size_t shared_bytes) {
  return {dim3(blocks, static_cast<unsigned>(heads), static_cast<unsigned>(batch)), dim3(kAttentionThreads),
          shared_bytes};
}

template <typename Tiles>
constexpr std::size_t shared_bytes_of() {
  static_assert(sizeof(Tiles) <= 99 * 1024, "sm_89 and sm_120 give a block no more");
  return sizeof(Tiles);
}

bool lies_on_16_bytes(const AttentionMatrix& matrix) {
  return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.stride % 8 == 0;
}

bool all_aligned(const AttentionShape& shape, std::initializer_list<AttentionMatrix> matrices) {
  bool aligned = shape.head_dim % 8 == 0;
  for (const AttentionMatrix& matrix : matrices) aligned = aligned && lies_on_16_bytes(matrix);
  return aligned;
}

/// Calls f with a constant: the narrowest width of tiles that holds a head.
template <typename F>
void for_width(std::int64_t head_dim, const F& f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 32>());
  if (head_dim <= 64) return f(std::integral_constant<int, 64>());
  if (head_dim <= 96) return f(std::integral_constant<int, 96>());
  f(std::integral_constant<int, 128>());
}

template <int kRowTiles>
void forward_tiles(const AttentionCall& call, Stream stream) {
  const AttentionShape& shape = call.shape;
  const auto args = arguments_of<bf16>(call, all_aligned(shape, {call.q, call.k, call.v, call.out}));
  for_width(shape.head_dim, [&](auto width) {
    using Tiles = ForwardTiles<width(), kRowTiles>;
    const int blocks = blocks_of(shape.query_len, Tiles::kQueries);
    launch("attention_forward", attention_forward<width(), kRowTiles>,
           shape_of(blocks, shape.heads, shape.batch, shared_bytes_of<Tiles>()), stream, args);
  });
}

template <typename T, int kColumns>
void forward_scalar(const AttentionCall& call, Stream stream) {
  const int blocks = blocks_of(call.shape.query_len, kAttentionWarps);
  launch("attention_forward_scalar", attention_forward_scalar<T, kColumns>,
         shape_of(blocks, call.shape.heads, call.shape.batch, 0), stream, arguments_of<T>(call, false));
}

template <typename T>
void statistics(const AttentionCall& call, const AttentionGradients& gradients, Stream stream) {
  const auto launch_with = [&](auto row_lanes) {
    launch("attention_statistics", attention_statistics<T, row_lanes()>,
           shape_of(statistics_blocks(call.shape), call.shape.heads, call.shape.batch,
                    kStatisticsRows * sizeof(int)),
           stream, arguments_of<T>(call, all_aligned(call.shape, {call.out, gradients.dout})),
           gradient_arguments<T>(call.shape, gradients));
  };
  static_assert(kWidestHead <= 32 * kPack);
  if (call.shape.head_dim <= 8 * kPack) return launch_with(std::integral_constant<int, 8>());
  if (call.shape.head_dim <= 16 * kPack) return launch_with(std::integral_constant<int, 16>());
  launch_with(std::integral_constant<int, 32>());
}

/// Two tiles of rows per warp read the other side half as often, and one makes twice as many blocks: two
/// where those still fill a large chip.
bool takes_two_tiles(const AttentionCall& call, std::int64_t rows, std::int64_t heads) {
  constexpr std::int64_t kRows = 128, kManyBlocks = 256;
  if (call.row_tiles != 0) return call.row_tiles == 2;
  return rows / kRows * heads * call.shape.batch >= kManyBlocks;
}

template <int kWidth, int kRowTiles>
void key_gradients(const AttentionCall& call, const AttentionGradients& gradients, bool aligned,
                   Stream stream) {
  using Tiles = KeyGradientTiles<kWidth, kRowTiles>;
  const int blocks = blocks_of(call.shape.key_len, Tiles::kKeys);
  launch("attention_key_gradients", attention_key_gradients<kWidth, kRowTiles>,
         shape_of(blocks, call.shape.kv_heads, call.shape.batch, shared_bytes_of<Tiles>()), stream,
         arguments_of<bf16>(call, aligned), gradient_arguments<bf16>(call.shape, gradients));
}

template <int kWidth, int kRowTiles>
void query_gradients(const AttentionCall& call, const AttentionGradients& gradients, bool aligned,
                     Stream stream) {
  using Tiles = QueryGradientTiles<kWidth, kRowTiles>;
  const int blocks = blocks_of(call.shape.query_len, Tiles::kQueries);
  launch("attention_query_gradients", attention_query_gradients<kWidth, kRowTiles>,
         shape_of(blocks, call.shape.heads, call.shape.batch, shared_bytes_of<Tiles>()), stream,
         arguments_of<bf16>(call, aligned), gradient_arguments<bf16>(call.shape, gradients));
}

void backward_tiles(const AttentionCall& call, const AttentionGradients& gradients, Stream stream) {
  const AttentionShape& shape = call.shape;
  const bool aligned =
      all_aligned(shape, {call.q, call.k, call.v, gradients.dout, gradients.dq, gradients.dk, gradients.dv});
  const bool two_of_keys = takes_two_tiles(call, shape.key_len, shape.kv_heads);
  const bool two_of_queries = takes_two_tiles(call, shape.query_len, shape.heads);
  for_width(shape.head_dim, [&](auto width) {
    constexpr int kMost =
        width() > 64 ? 1 : 2;  // both gradients of two tiles of wide heads fill the registers
    const auto of_keys = two_of_keys ? key_gradients<width(), kMost> : key_gradients<width(), 1>;
    const auto of_queries = two_of_queries ? query_gradients<width(), 2> : query_gradients<width(), 1>;
    of_keys(call, gradients, aligned, stream);
    of_queries(call, gradients, aligned, stream);
  });
}

template <typename T, int kColumns>
void backward_scalar(const AttentionCall& call, const AttentionGradients& gradients, Stream stream) {
  const AttentionShape& shape = call.shape;
  const auto args = arguments_of<T>(call, false);
  const auto more = gradient_arguments<T>(shape, gradients);
  launch("attention_key_gradients_scalar", attention_key_gradients_scalar<T, kColumns>,
         shape_of(blocks_of(shape.key_len, kAttentionWarps), shape.kv_heads, shape.batch, 0), stream, args,
         more);
  launch("attention_query_gradients_scalar", attention_query_gradients_scalar<T, kColumns>,
         shape_of(blocks_of(shape.query_len, kAttentionWarps), shape.heads, shape.batch, 0), stream, args,
         more);
}

/// Calls f with an element and the columns per lane that hold a head. BF16 comes here with wide heads only.
template <typename F>
void for_scalar(const AttentionCall& call, const F& f) {
  constexpr std::integral_constant<int, kWidestTile / 32> kNarrow;
  constexpr std::integral_constant<int, kWidestHead / 32> kWide;
  if (call.dtype == DType::bf16) return f(bf16(), kWide);
  if (call.shape.head_dim <= kWidestTile) return f(float(), kNarrow);
  f(float(), kWide);
}

bool takes_tiles(const AttentionCall& call) {
  return call.dtype == DType::bf16 && call.shape.head_dim <= kWidestTile;
}

/// Of a call that takes tiles. The warpgroups' maximum is of the unscaled products, so the scale must keep their order.
bool takes_warpgroups(const AttentionCall& call, std::initializer_list<AttentionMatrix> matrices) {
  const AttentionShape& shape = call.shape;
  return call.warpgroups && shape.scale > 0 && shape.batch > 0 && shape.query_len > 0 &&
         all_aligned(shape, matrices);
}

}  // namespace

void launch_attention(const AttentionCall& call, Stream stream) {
  check_device_attention(call.shape);
  if (!takes_tiles(call)) {
    return for_scalar(call, [&](auto element, auto columns) {
      forward_scalar<decltype(element), columns()>(call, stream);
    });
  }
  if (takes_warpgroups(call, {call.q, call.k, call.v, call.out}))
    return launch_warpgroup_attention(call, stream);
  if (takes_two_tiles(call, call.shape.query_len, call.shape.heads)) return forward_tiles<2>(call, stream);
  forward_tiles<1>(call, stream);
}

std::int64_t attention_workspace(const AttentionCall& call) {
  const AttentionShape& shape = call.shape;
  const std::int64_t blocks = shape.batch * statistics_blocks(shape);
  const std::int64_t parts = call.warpgroups && takes_tiles(call) ? key_gradient_parts(shape) : 1;
  const std::int64_t sums =
      parts > 1 ? parts * 2 * shape.batch * shape.key_len * shape.kv_heads * shape.head_dim : 0;
  return blocks * (shape.heads * static_cast<std::int64_t>(sizeof(StatisticsBlock<kStatisticsRows>)) +
                   static_cast<std::int64_t>(sizeof(FirstKeys))) +
         sums * static_cast<std::int64_t>(sizeof(float));
}

void launch_attention_backward(const AttentionCall& call, const AttentionGradients& gradients,
                               Stream stream) {
  check_device_attention(call.shape);
  if (takes_tiles(call)) {
    statistics<bf16>(call, gradients, stream);
    if (takes_warpgroups(call,
                         {call.q, call.k, call.v, gradients.dout, gradients.dq, gradients.dk, gradients.dv}))
      return launch_warpgroup_attention_backward(call, gradients, stream);
    return backward_tiles(call, gradients, stream);
  }
  for_scalar(call, [&](auto element, auto columns) {
    statistics<decltype(element)>(call, gradients, stream);
    backward_scalar<decltype(element), columns()>(call, gradients, stream);
  });
}

}  // namespace quaver::cuda
