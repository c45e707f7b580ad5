/// Attention on the device: plain launches over pointers, which the backend's methods call.
///
/// Matrices are as in backend.h: head h in columns [h * head_dim, (h + 1) * head_dim), any row stride, any
/// alignment. Where all pointers lie on 16 bytes, and strides and head_dim are multiples of 8 elements, rows
/// are read 16 bytes at a time; else element by element. Both give the same bits. Each element of a result is
/// summed by one thread in a fixed order: no atomics, the same bits in every run.
///
/// BF16 heads up to kWidestTile go through tiles and the tensor cores: probabilities and their gradients are
/// rounded to BF16 before they are multiplied. Where the chip has warpgroup products (sm_90a) and operands lie on
/// 16 bytes, the tiles are theirs. FP32, and heads up to kWidestHead, take one warp per row and no tensor cores.
///
/// A NaN or an infinity reaches only the rows that see it, as in the reference: rows of tiles that come out NaN are
/// computed again by a warp that reads nothing but what they see.
///
/// A query that sees no key (first_key beyond its position) has out NaN and lse -infinity, as in the
/// reference, gets dq = 0 and gives nothing to dk and dv.
#pragma once

#include <cstdint>

#include "ops/cuda/stream.h"
#include "quaver/backend.h"

namespace quaver::cuda {

constexpr std::int64_t kWidestTile = 128, kWidestHead = 256;

/// Throws Error(usage) for a shape that the launches below do not take; they call it.
void check_device_attention(const AttentionShape& shape);

/// Element (row, column) is data[row * stride + column]; of the call's element type.
struct AttentionMatrix {
  void* data = nullptr;
  std::int64_t stride = 0;
};

/// What forward and backward share.
struct AttentionCall {
  AttentionShape shape;
  DType dtype = DType::bf16;  ///< of every matrix: bf16 or f32
  AttentionMatrix q, k, v;
  const std::int32_t* first_key = nullptr;  ///< [batch * query_len] or null
  AttentionMatrix out;                      ///< written by forward, read by backward
  float* lse = nullptr;                     ///< [batch * query_len, heads]; may be null in forward
  std::int64_t lse_stride = 0;
  /// Of BF16: 1 or 2 tiles of 16 rows per warp, the same bits; 0 chooses by shape.
  int row_tiles = 0;
  /// The chip has warpgroup products (sm_90a): BF16 tiles on 16 bytes go through those.
  bool warpgroups = false;
};

struct AttentionGradients {
  AttentionMatrix dout, dq, dk, dv;
  void* workspace = nullptr;  ///< attention_workspace bytes, 16-byte aligned, needed until the kernels end
};

void launch_attention(const AttentionCall& call, Stream stream);

/// Bytes that one backward needs beside its operands: 12 per query and head, 8 per 64 queries (their number rounded up to
/// 128), and FP32 sums of dk and dv where several blocks share a tile's queries.
std::int64_t attention_workspace(const AttentionCall& call);

/// Into how many parts the warpgroups' kernel of dk and dv deals each tile's queries; 1 where its blocks fill the chip.
int key_gradient_parts(const AttentionShape& shape);

/// Three kernels: statistics of the queries, then dk and dv (with few tiles of keys one more, which adds parts), then dq. The last two need only the first, so
/// they may later run side by side.
void launch_attention_backward(const AttentionCall& call, const AttentionGradients& gradients, Stream stream);

}  // namespace quaver::cuda
