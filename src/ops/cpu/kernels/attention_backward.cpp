#include "ops/cpu/kernels/attention_blocks.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Packed keys and values, the FP32 gradients of keys and values, and one block's intermediates.
template <typename T>
struct BackwardScratch {
  BackwardScratch(const AttentionSequence& sequence, float* memory) : sizes(sequence) {
    const ScratchPieces take{memory, size};
    const std::int64_t query_steps = steps_of(sequence.element, kQueryBlock);
    const std::int64_t key_steps = steps_of(sequence.element, kKeyBlock);
    keys = take(sizes.blocks * sizes.key_lanes);
    values = take(sizes.blocks * sizes.key_lanes);
    keys_across = take(sizes.blocks * sizes.head_lanes);
    dk = take(sizes.blocks * kKeyBlock * sizes.width);
    dv = take(sizes.blocks * kKeyBlock * sizes.width);
    q_rows = take(kQueryBlock * sizes.head_steps);
    dout_rows = take(kQueryBlock * sizes.head_steps);
    q_columns = take(sizes.width * query_steps);
    dout_columns = take(sizes.width * query_steps);
    scores = take(kQueryBlock * kKeyBlock);
    dp = take(kQueryBlock * kKeyBlock);
    p = reinterpret_cast<T*>(take(kQueryBlock * kKeyBlock));
    ds = reinterpret_cast<T*>(take(kQueryBlock * kKeyBlock));
    ds_rows = take(kQueryBlock * key_steps);
    across = take(kKeyBlock * query_steps);
    dq = take(kQueryBlock * sizes.width);
    lse = take(kQueryBlock);
    delta = take(kQueryBlock);
  }
  std::int64_t size = 0;
  BlockSizes sizes;
  float *keys, *values, *keys_across;
  float *dk, *dv;
  float *q_rows, *dout_rows, *q_columns, *dout_columns;
  float *scores, *dp;
  T *p, *ds;
  float* ds_rows;
  float* across;  ///< packed p or ds with keys as lanes
  float* dq;
  float *lse, *delta;  ///< lse in units of log2; delta = sum(dout * out)
};

/// One head of the group.
struct HeadBackward {
  HeadMatrix q, out, dout, dq;
  const float* lse;
};

template <typename T>
HeadBackward head_of(const AttentionSequence& sequence, const AttentionGroupBackward& group,
                     std::int64_t head) {
  const auto shifted = [&](const HeadMatrix& matrix) {
    return HeadMatrix{row_of<T>(matrix, 0) + head * sequence.head_dim, matrix.stride};
  };
  return {shifted(group.first.q), shifted(group.first.out), shifted(group.dout), shifted(group.dq),
          group.first.lse + head};
}

/// Packs the block's queries and output gradients both ways, and prepares what its rows need.
template <typename T>
void begin_queries(const AttentionSequence& sequence, const HeadBackward& head,
                   const BackwardScratch<T>& scratch, std::int64_t begin, std::int64_t rows) {
  const std::int64_t d = sequence.head_dim;
  const T *q = row_of<T>(head.q, begin), *dout = row_of<T>(head.dout, begin);
  pack_rows(operand(q, head.q.stride, rows, d, true), 0, rows, scratch.q_rows);
  pack_rows(operand(dout, head.dout.stride, rows, d, true), 0, rows, scratch.dout_rows);
  pack_columns(operand(q, head.q.stride, d, rows, false), 0, d, scratch.q_columns);
  pack_columns(operand(dout, head.dout.stride, d, rows, false), 0, d, scratch.dout_columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    const T *dout_row = dout + row * head.dout.stride, *out_row = row_of<T>(head.out, begin + row);
    f32x16 products = f32s(0);
    for_vectors(d, [&](std::int64_t i, auto lanes) {
      products += load(dout_row + i, lanes) * load(out_row + i, lanes);
    });
    scratch.delta[row] = sum(products);
    scratch.lse[row] = head.lse[(begin + row) * sequence.lse_stride] * kLog2E;
  }
  for (std::int64_t i = 0; i < kQueryBlock * scratch.sizes.width; ++i) scratch.dq[i] = 0;
}

/// p = exp(score - lse), ds = p * (dp - delta) * scale; zero where the query does not see the key.
template <typename T>
void differentiate_row(const BackwardScratch<T>& scratch, std::int64_t row, KeyRange range, float scale) {
  const std::int64_t at = row * kKeyBlock;
  if (range.lo != range.hi) {
    const f32x16 lse = f32s(scratch.lse[row]), delta = f32s(scratch.delta[row]);
#pragma GCC unroll 6
    for (int v = 0; v < kKeyVectors; ++v) {
      const f32x16 p = exp2(load(scratch.scores + at + v * kLanes, Full{}) * (scale * kLog2E) - lse);
      const f32x16 ds = p * (load(scratch.dp + at + v * kLanes, Full{}) - delta) * scale;
      store(p, scratch.p + at + v * kLanes, Full{});
      store(ds, scratch.ds + at + v * kLanes, Full{});
    }
  }
  fill_outside(scratch.p + at, range, T{});
  fill_outside(scratch.ds + at, range, T{});
}

template <typename T>
void backward_block(const AttentionSequence& sequence, const BackwardScratch<T>& scratch, std::int64_t begin,
                    std::int64_t rows, std::int64_t block) {
  using Math = typename ElementOf<T>::Math;
  const BlockSizes& sizes = scratch.sizes;
  const std::int64_t key = block * kKeyBlock, keys = lower(kKeyBlock, sequence.key_len - key),
                     d = sequence.head_dim;
  multiply_block<Math>(scratch.q_rows, scratch.keys + block * sizes.key_lanes, rows, keys, sizes.head_steps,
                       scratch.scores, kKeyBlock, false);
  multiply_block<Math>(scratch.dout_rows, scratch.values + block * sizes.key_lanes, rows, keys,
                       sizes.head_steps, scratch.dp, kKeyBlock, false);
  for (std::int64_t row = 0; row < rows; ++row) {
    differentiate_row(scratch, row, within_block(visible_keys(sequence, begin + row), key), sequence.scale);
  }
  const std::int64_t query_steps = steps_of(sequence.element, rows), offset = key * sizes.width;
  pack_rows(operand(scratch.p, kKeyBlock, keys, rows, false), 0, keys, scratch.across);
  multiply_block<Math>(scratch.across, scratch.dout_columns, keys, d, query_steps, scratch.dv + offset,
                       sizes.width, true);
  pack_rows(operand(scratch.ds, kKeyBlock, keys, rows, false), 0, keys, scratch.across);
  multiply_block<Math>(scratch.across, scratch.q_columns, keys, d, query_steps, scratch.dk + offset,
                       sizes.width, true);
  pack_rows(operand(scratch.ds, kKeyBlock, rows, keys, true), 0, rows, scratch.ds_rows);
  multiply_block<Math>(scratch.ds_rows, scratch.keys_across + block * sizes.head_lanes, rows, d,
                       steps_of(sequence.element, keys), scratch.dq, sizes.width, true);
}

template <typename T>
void store_gradient(const float* from, std::int64_t width, std::int64_t rows, std::int64_t columns,
                    const HeadMatrix& to, std::int64_t first_row) {
  for (std::int64_t row = 0; row < rows; ++row) {
    T* out = row_of<T>(to, first_row + row);
    for_vectors(columns, [&](std::int64_t i, auto lanes) {
      store(load(from + row * width + i, lanes), out + i, lanes);
    });
  }
}

/// Heads, blocks of queries and blocks of keys in ascending order: the order in which dk and dv are summed.
template <typename T>
void backward(const AttentionSequence& sequence, const AttentionGroupBackward& group, float* memory) {
  const BackwardScratch<T> scratch(sequence, memory);
  const std::int64_t width = scratch.sizes.width, d = sequence.head_dim;
  pack_key_blocks<T>(sequence, group.k, false, scratch.keys);
  pack_key_blocks<T>(sequence, group.v, false, scratch.values);
  pack_key_blocks<T>(sequence, group.k, true, scratch.keys_across);
  const std::int64_t gradients = scratch.sizes.blocks * kKeyBlock * width;
  for (std::int64_t i = 0; i < gradients; ++i) scratch.dk[i] = scratch.dv[i] = 0;

  for (std::int64_t h = 0; h < group.heads; ++h) {
    const HeadBackward head = head_of<T>(sequence, group, h);
    for (std::int64_t begin = 0; begin < sequence.query_len; begin += kQueryBlock) {
      const std::int64_t rows = lower(kQueryBlock, sequence.query_len - begin);
      begin_queries(sequence, head, scratch, begin, rows);
      const KeyRange range = visible_keys(sequence, begin, begin + rows);
      for (std::int64_t block = range.lo / kKeyBlock; block * kKeyBlock < range.hi; ++block) {
        backward_block(sequence, scratch, begin, rows, block);
      }
      store_gradient<T>(scratch.dq, width, rows, d, head.dq, begin);
    }
  }
  store_gradient<T>(scratch.dk, width, sequence.key_len, d, group.dk, 0);
  store_gradient<T>(scratch.dv, width, sequence.key_len, d, group.dv, 0);
}

template <typename T>
std::int64_t backward_scratch(const AttentionSequence& sequence) {
  return BackwardScratch<T>(sequence, nullptr).size;
}

}  // namespace

std::int64_t attention_backward_scratch(const AttentionSequence& sequence) {
  return sequence.element == Element::bf16 ? backward_scratch<Bf16>(sequence)
                                           : backward_scratch<float>(sequence);
}

void attention_backward(const AttentionSequence& sequence, const AttentionGroupBackward& group,
                        float* scratch) {
  if (sequence.element == Element::bf16) return backward<Bf16>(sequence, group, scratch);
  backward<float>(sequence, group, scratch);
}

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
