#include <algorithm>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/attention.h"
#include "ops/cpu/ranges.h"

namespace quaver {
namespace {

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

AttentionHead head_of(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& out, const Tensor& lse, std::int64_t batch, std::int64_t head) {
  const std::int64_t row = batch * shape.query_len, column = head * shape.head_dim;
  const std::int64_t key_row = batch * shape.key_len;
  const std::int64_t key_column = head / (shape.heads / shape.kv_heads) * shape.head_dim;
  return {.q = head_matrix(q, row, column),
          .out = head_matrix(out, row, column),
          .k = head_matrix(k, key_row, key_column),
          .v = head_matrix(v, key_row, key_column),
          .lse = lse ? lse.data<float>() + row * lse.row_stride() + head : nullptr};
}

/// Heads whose gradients of keys and values are in memory at once: bounds that memory, and still gives the
/// threads enough items.
constexpr std::int64_t kHeadsPerRound = 32;

/// The backward pass of a few sequences at a time: every query head by itself, then the sum over the heads
/// that share keys and values.
class AttentionBackward {
 public:
  AttentionBackward(Backend& backend, const Threads& threads, const cpu::AttentionBackwardKernels& kernels,
                    const AttentionShape& shape, const Tensor& q, const Tensor& first_key, const Tensor& lse)
      : threads_(threads),
        kernels_(kernels),
        shape_(shape),
        any_(sequence_of(shape, q, first_key, lse, 0)),
        packed_size_(kernels.packed_size(any_)),
        gradient_size_(kernels.gradient_size(any_)),
        scratch_size_(kernels.scratch(any_)),
        sequences_(std::clamp<std::int64_t>(kHeadsPerRound / shape.heads, 1, shape.batch)) {
    packed_ = backend.allocate(DType::f32, {sequences_ * shape.kv_heads * packed_size_});
    gradients_ = backend.allocate(DType::f32, {2, sequences_ * shape.heads * gradient_size_});
    scratch_ = backend.allocate(DType::f32, {threads.count() * scratch_size_});
  }

  void run(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& first_key,
           const Tensor& out, const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) const {
    for (std::int64_t first = 0; first < shape_.batch; first += sequences_) {
      const std::int64_t count = std::min(sequences_, shape_.batch - first);
      threads_.for_each(count * shape_.kv_heads, [&](std::int64_t item) {
        kernels_.pack(any_, key_head(k, first, item), key_head(v, first, item),
                      packed_.data<float>() + item * packed_size_);
      });
      threads_.for_each_on_thread(count * shape_.heads, [&](std::int64_t item, int thread) {
        const std::int64_t batch = first + item / shape_.heads, head = item % shape_.heads;
        const std::int64_t row = batch * shape_.query_len, column = head * shape_.head_dim;
        kernels_.backward(sequence_of(shape_, q, first_key, lse, batch),
                          {.head = head_of(shape_, q, k, v, out, lse, batch, head),
                           .dout = head_matrix(dout, row, column),
                           .dq = head_matrix(dq, row, column),
                           .packed = packed_.data<float>() + item / group_size() * packed_size_,
                           .dk = gradient(0, item),
                           .dv = gradient(1, item)},
                          scratch_.data<float>() + thread * scratch_size_);
      });
      threads_.for_each(2 * count * shape_.kv_heads, [&](std::int64_t item) {
        const std::int64_t of_values = item % 2, group = item / 2;
        kernels_.sum_heads(any_, gradient(of_values, group * group_size()), group_size(),
                           key_head(of_values ? dv : dk, first, group));
      });
    }
  }

 private:
  std::int64_t group_size() const { return shape_.heads / shape_.kv_heads; }
  /// Key/value head `item` of the sequences from `first` on.
  HeadMatrix key_head(const Tensor& matrix, std::int64_t first, std::int64_t item) const {
    return head_matrix(matrix, (first + item / shape_.kv_heads) * shape_.key_len,
                       item % shape_.kv_heads * shape_.head_dim);
  }
  float* gradient(std::int64_t of_values, std::int64_t head) const {
    return gradients_.data<float>() + of_values * gradients_.cols() + head * gradient_size_;
  }

  const Threads& threads_;
  const cpu::AttentionBackwardKernels& kernels_;
  AttentionShape shape_;
  AttentionSequence any_;  ///< sizes, which all sequences share
  std::int64_t packed_size_, gradient_size_, scratch_size_, sequences_;
  Tensor packed_, gradients_, scratch_;
};

/// Query heads [first, first + count) of a group that shares keys and values.
struct HeadsOfGroup {
  std::int64_t group, first, count;
};

/// Groups whole, as often as all threads have one: heads of a group together take little longer than one of them. What is left is
/// dealt in parts so that every thread has one. Each head is computed by itself, so the parts do not change bits.
std::vector<HeadsOfGroup> deal_heads(std::int64_t groups, std::int64_t group_size, std::int64_t most,
                                     std::int64_t threads) {
  const std::int64_t whole = groups / threads * threads;
  std::vector<HeadsOfGroup> items;
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t sharers = group < whole ? 1 : cpu::ceil_div(threads, groups - whole);
    const std::int64_t part = std::min(most, cpu::ceil_div(group_size, sharers));
    for (std::int64_t first = 0; first < group_size; first += part)
      items.push_back({group, first, std::min(part, group_size - first)});
  }
  return items;
}

/// One query of every sequence, over keys and values where they stand.
void attend_one_query(Backend& backend, const Threads& threads, const cpu::OneQueryKernels& kernels,
                      const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& out, const Tensor& lse) {
  const std::int64_t group_size = shape.heads / shape.kv_heads;
  const std::vector<HeadsOfGroup> items =
      deal_heads(shape.batch * shape.kv_heads, group_size, kernels.heads, threads.count());
  AttentionSequence sequence = sequence_of(shape, q, {}, lse, 0);
  sequence.lse_stride = 1;
  const std::int64_t scratch_size = kernels.scratch(sequence);
  const Tensor scratch = backend.allocate(DType::f32, {threads.count() * scratch_size});
  threads.for_each_on_thread(static_cast<std::int64_t>(items.size()), [&](std::int64_t item, int thread) {
    const auto [group, first, count] = items[static_cast<std::size_t>(item)];
    const std::int64_t batch = group / shape.kv_heads, head = group % shape.kv_heads * group_size + first;
    AttentionHead heads = head_of(shape, q, k, v, out, lse, batch, head);
    heads.q.stride = heads.out.stride = shape.head_dim;
    kernels.forward(sequence, heads, count, scratch.data<float>() + thread * scratch_size);
  });
}

}  // namespace

const cpu::AttentionKernels& CpuBackend::attention_kernels(DType dtype) const {
  return unit_ && dtype == DType::bf16 ? *unit_->attention : *kernels_.attention;
}

void CpuBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  check_attention(shape, q, k, v, first_key, out, lse);
  if (out.elements() == 0) return;
  const cpu::OneQueryKernels* const one_query = kernels_.attention->one_query;
  if (one_query && shape.query_len == 1 && !first_key && q.dtype() == DType::bf16)
    return attend_one_query(*this, threads_, *one_query, shape, q, k, v, out, lse);
  const cpu::AttentionKernels& kernels = attention_kernels(q.dtype());
  const AttentionSequence any = sequence_of(shape, q, first_key, lse, 0);
  const std::int64_t groups = shape.batch * shape.kv_heads, packed_size = kernels.packed_size(any);
  const std::int64_t scratch_size = kernels.forward_scratch(any);
  const Tensor packed = allocate(DType::f32, {groups * packed_size});
  const Tensor scratch = allocate(DType::f32, {threads_.count() * scratch_size});

  threads_.for_each(2 * groups, [&](std::int64_t item) {
    const std::int64_t group = item / 2;
    const bool values = item % 2 != 0;
    const HeadMatrix matrix = head_matrix(values ? v : k, group / shape.kv_heads * shape.key_len,
                                          group % shape.kv_heads * shape.head_dim);
    (values ? kernels.pack_values : kernels.pack_keys)(any, matrix,
                                                       packed.data<float>() + group * packed_size);
  });

  const std::int64_t blocks = (shape.query_len + cpu::kQueryBlock - 1) / cpu::kQueryBlock;
  const std::int64_t heads = shape.batch * shape.heads, group_size = shape.heads / shape.kv_heads;
  threads_.for_each_on_thread(heads * blocks, [&](std::int64_t item, int thread) {
    // Later queries see more keys: the longest items come first, so that the threads end together.
    const std::int64_t begin = (blocks - 1 - item / heads) * cpu::kQueryBlock;
    const std::int64_t batch = item % heads / shape.heads, head = item % shape.heads;
    const std::int64_t group = batch * shape.kv_heads + head / group_size;
    kernels.forward(
        sequence_of(shape, q, first_key, lse, batch), head_of(shape, q, k, v, out, lse, batch, head),
        packed.data<float>() + group * packed_size, begin,
        std::min(shape.query_len, begin + cpu::kQueryBlock), scratch.data<float>() + thread * scratch_size);
  });
}

void CpuBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                    const Tensor& k, const Tensor& v, const Tensor& first_key,
                                    const Tensor& out, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                    const Tensor& dv) {
  check_attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
  if (shape.batch * shape.kv_heads * shape.head_dim == 0) return;
  AttentionBackward(*this, threads_, *attention_kernels(q.dtype()).backward, shape, q, first_key, lse)
      .run(dout, q, k, v, first_key, out, lse, dq, dk, dv);
}

}  // namespace quaver
