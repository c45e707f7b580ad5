/// A call's arguments as kernels take them.
#pragma once

#include "ops/cuda/attention.h"
#include "ops/cuda/attention_backward.cuh"

namespace quaver::cuda {

inline int blocks_of(std::int64_t rows, int size) {
  return static_cast<int>((rows + size - 1) / size);
}

template <typename T>
HeadRows<T> rows_of(const AttentionMatrix& matrix) {
  return {static_cast<T*>(matrix.data), matrix.stride};
}

template <typename T>
AttentionArguments<T> arguments_of(const AttentionCall& call, bool aligned) {
  const AttentionShape& shape = call.shape;
  return {.query_len = static_cast<int>(shape.query_len),
          .key_len = static_cast<int>(shape.key_len),
          .heads = static_cast<int>(shape.heads),
          .kv_heads = static_cast<int>(shape.kv_heads),
          .head_dim = static_cast<int>(shape.head_dim),
          .scale = shape.scale,
          .aligned = aligned,
          .q = rows_of<const T>(call.q),
          .k = rows_of<const T>(call.k),
          .v = rows_of<const T>(call.v),
          .first_key = call.first_key,
          .out = rows_of<T>(call.out),
          .lse = call.lse,
          .lse_stride = call.lse_stride};
}

inline int statistics_blocks(const AttentionShape& shape) {
  return 2 * blocks_of(shape.query_len, 2 * kStatisticsRows);
}

/// `key_parts`: of the kernel of dk and dv (Workspace).
inline Workspace workspace_of(const AttentionShape& shape, int key_parts, void* memory) {
  auto* statistics = static_cast<StatisticsBlock<kStatisticsRows>*>(memory);
  const int blocks = statistics_blocks(shape);
  auto* first_keys = reinterpret_cast<FirstKeys*>(statistics + shape.batch * shape.heads * blocks);
  return {statistics, first_keys, blocks, reinterpret_cast<float*>(first_keys + shape.batch * blocks),
          key_parts};
}

template <typename T>
GradientArguments<T> gradient_arguments(const AttentionShape& shape, const AttentionGradients& gradients,
                                        int key_parts = 1) {
  return {.dout = rows_of<const T>(gradients.dout),
          .dq = rows_of<T>(gradients.dq),
          .dk = rows_of<T>(gradients.dk),
          .dv = rows_of<T>(gradients.dv),
          .workspace = workspace_of(shape, key_parts, gradients.workspace)};
}

// The kernels of warpgroups (attention_warpgroup.cuh), for operands on 16 bytes and positive scales; backward after the
// statistics.
void launch_warpgroup_attention(const AttentionCall& call, Stream stream);
void launch_warpgroup_attention_backward(const AttentionCall& call, const AttentionGradients& gradients,
                                         Stream stream);

}  // namespace quaver::cuda
