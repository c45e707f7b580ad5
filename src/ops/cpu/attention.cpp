#include <algorithm>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/attention.h"

namespace quaver {
namespace {

using cpu::AttentionGroupBackward;
using cpu::AttentionHead;
using cpu::AttentionSequence;
using cpu::HeadMatrix;

cpu::Element element_of(const Tensor& q) {
  return q.dtype() == DType::bf16 ? cpu::Element::bf16 : cpu::Element::f32;
}

/// Columns [column, ...) of `matrix` from `row` on.
HeadMatrix head_matrix(const Tensor& matrix, std::int64_t row, std::int64_t column) {
  const std::int64_t offset = row * matrix.row_stride() + column;
  return {static_cast<std::byte*>(matrix.raw()) + offset * static_cast<std::int64_t>(size_of(matrix.dtype())),
          matrix.row_stride()};
}

AttentionSequence sequence_of(const AttentionShape& shape, const Tensor& q, const Tensor& first_key,
                              const Tensor& lse, std::int64_t batch) {
  return {.element = element_of(q),
          .query_len = shape.query_len,
          .key_len = shape.key_len,
          .head_dim = shape.head_dim,
          .scale = shape.scale,
          .first_key = first_key ? first_key.data<std::int32_t>() + batch * shape.query_len : nullptr,
          .lse_stride = lse ? lse.row_stride() : 0};
}

AttentionHead head_of(const AttentionShape& shape, const Tensor& q, const Tensor& out, const Tensor& lse,
                      std::int64_t batch, std::int64_t head) {
  const std::int64_t row = batch * shape.query_len, column = head * shape.head_dim;
  return {.q = head_matrix(q, row, column),
          .out = head_matrix(out, row, column),
          .lse = lse ? lse.data<float>() + row * lse.row_stride() + head : nullptr};
}

}  // namespace

void CpuBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  check_attention(shape, q, k, v, first_key, out, lse);
  if (out.elements() == 0) return;
  const cpu::AttentionKernels& kernels = *kernels_.attention;
  const AttentionSequence any = sequence_of(shape, q, first_key, lse, 0);
  const std::int64_t groups = shape.batch * shape.kv_heads, packed_size = kernels.packed_size(any);
  const std::int64_t scratch_size = kernels.forward_scratch(any);
  const Tensor packed = allocate(DType::f32, {groups * packed_size});
  const Tensor scratch = allocate(DType::f32, {threads_.count() * scratch_size});

  threads_.for_each(groups, [&](std::int64_t group) {
    const std::int64_t row = group / shape.kv_heads * shape.key_len,
                       column = group % shape.kv_heads * shape.head_dim;
    kernels.pack(any, head_matrix(k, row, column), head_matrix(v, row, column),
                 packed.data<float>() + group * packed_size);
  });

  const std::int64_t blocks = (shape.query_len + cpu::kQueryBlock - 1) / cpu::kQueryBlock;
  const std::int64_t heads = shape.batch * shape.heads, group_size = shape.heads / shape.kv_heads;
  threads_.for_each_on_thread(heads * blocks, [&](std::int64_t item, int thread) {
    // Later queries see more keys: the longest items come first, so that the threads end together.
    const std::int64_t begin = (blocks - 1 - item / heads) * cpu::kQueryBlock;
    const std::int64_t batch = item % heads / shape.heads, head = item % shape.heads;
    const std::int64_t group = batch * shape.kv_heads + head / group_size;
    kernels.forward(sequence_of(shape, q, first_key, lse, batch), head_of(shape, q, out, lse, batch, head),
                    packed.data<float>() + group * packed_size, begin,
                    std::min(shape.query_len, begin + cpu::kQueryBlock),
                    scratch.data<float>() + thread * scratch_size);
  });
}

void CpuBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const Tensor& first_key,
                                    const Tensor& out, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                    const Tensor& dv) {
  check_attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
  if (shape.batch * shape.kv_heads * shape.head_dim == 0) return;
  const cpu::AttentionKernels& kernels = *kernels_.attention;
  const std::int64_t scratch_size = kernels.backward_scratch(sequence_of(shape, q, first_key, lse, 0));
  const Tensor scratch = allocate(DType::f32, {std::max<std::int64_t>(16, threads_.count() * scratch_size)});
  const std::int64_t group_size = shape.heads / shape.kv_heads;
  threads_.for_each_on_thread(shape.batch * shape.kv_heads, [&](std::int64_t item, int thread) {
    const std::int64_t batch = item / shape.kv_heads, kv_head = item % shape.kv_heads,
                       head = kv_head * group_size;
    const std::int64_t query_row = batch * shape.query_len, query_column = head * shape.head_dim;
    const std::int64_t key_row = batch * shape.key_len, key_column = kv_head * shape.head_dim;
    const AttentionGroupBackward group{.heads = group_size,
                                       .first = head_of(shape, q, out, lse, batch, head),
                                       .dout = head_matrix(dout, query_row, query_column),
                                       .dq = head_matrix(dq, query_row, query_column),
                                       .k = head_matrix(k, key_row, key_column),
                                       .v = head_matrix(v, key_row, key_column),
                                       .dk = head_matrix(dk, key_row, key_column),
                                       .dv = head_matrix(dv, key_row, key_column)};
    kernels.backward(sequence_of(shape, q, first_key, lse, batch), group,
                     scratch.data<float>() + thread * scratch_size);
  });
}

}  // namespace quaver
