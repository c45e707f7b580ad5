/// Attention's backward pass, for one head.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/attention_blocks.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Queries of a block, over which gradients of keys and values are summed. Products of tiles over few of them take less time than
/// their sums take to and from memory.
constexpr std::int64_t kQueries = kStepMultiple > 1 ? 2 * kQueryBlock : kQueryBlock;

/// FP32 numbers of one head's gradient of keys or of values: whole blocks of keys, padded rows.
inline std::int64_t gradient_size(const AttentionSequence& sequence) {
  const BlockSizes sizes(sequence);
  return sizes.blocks * kKeyBlock * sizes.width;
}

/// Where the packed forms of one key/value head begin: keys, values, keys across, and the blocks' flags.
struct BackwardPack {
  explicit BackwardPack(const BlockSizes& sizes)
      : values(sizes.blocks * sizes.key_lanes),
        keys_across(2 * values),
        flags(keys_across + sizes.blocks * sizes.head_lanes),
        size(flags + sizes.flags) {}
  std::int64_t values, keys_across, flags, size;
};

/// One block's intermediates.
template <typename T>
struct BackwardScratch {
  BackwardScratch(const AttentionSequence& sequence, float* memory) : sizes(sequence) {
    const ScratchPieces take{memory, size};
    const std::int64_t query_steps = steps_of(sequence.element, kQueries);
    q_rows = take(kQueries * sizes.head_row);
    dout_rows = take(kQueries * sizes.head_row);
    q_columns = take(sizes.width * query_steps);
    dout_columns = take(sizes.width * query_steps);
    scores = take(kQueries * kKeyBlock);
    dp = take(kQueries * kKeyBlock);
    p = reinterpret_cast<T*>(take(kQueries * kKeyBlock));
    ds = reinterpret_cast<T*>(take(kQueries * kKeyBlock));
    ds_rows = take(kQueries * sizes.key_row);
    across = take(kKeyBlock * row_stride(sequence.element, kQueries));
    dq = take(kQueries * sizes.width);
    lse = take(kQueries);
    delta = take(kQueries);
  }
  std::int64_t size = 0;
  BlockSizes sizes;
  float *q_rows, *dout_rows, *q_columns, *dout_columns;
  float *scores, *dp;
  T *p, *ds;
  float* ds_rows;
  float* across;  ///< packed p or ds with keys as lanes
  float* dq;
  float *lse, *delta;  ///< lse in units of log2; delta = sum(dout * out)
};

/// What of a block of queries is not finite.
struct NonfiniteQueries {
  bool q, dout;
};

/// Packs the block's queries and output gradients both ways, and prepares what its rows need.
template <typename T>
NonfiniteQueries begin_queries(const AttentionSequence& sequence, const AttentionHeadBackward& backward,
                               const BackwardScratch<T>& scratch, std::int64_t begin, std::int64_t rows) {
  const std::int64_t d = sequence.head_dim;
  const AttentionHead& head = backward.head;
  const T *q = row_of<T>(head.q, begin), *dout = row_of<T>(backward.dout, begin);
  pack_as_rows(q, head.q.stride, rows, d, true, scratch.q_rows);
  pack_as_rows(dout, backward.dout.stride, rows, d, true, scratch.dout_rows);
  const bool bad_q = pack_across(sequence, q, head.q.stride, rows, scratch.q_columns);
  const bool bad_dout = pack_across(sequence, dout, backward.dout.stride, rows, scratch.dout_columns);
  for (std::int64_t row = 0; row < rows; ++row) {
    const T *dout_row = dout + row * backward.dout.stride, *out_row = row_of<T>(head.out, begin + row);
    f32x16 products = f32s(0);
    for_vectors(d, [&](std::int64_t i, auto lanes) {
      products += load(dout_row + i, lanes) * load(out_row + i, lanes);
    });
    scratch.delta[row] = sum(products);
    scratch.lse[row] = head.lse[(begin + row) * sequence.lse_stride] * kLog2E;
  }
  for (std::int64_t i = 0; i < kQueries * scratch.sizes.width; ++i) scratch.dq[i] = 0;
  return {bad_q, bad_dout};
}

/// p = exp(score - lse), ds = p * (dp - delta) * scale; zero where the query does not see the key.
template <typename T>
void differentiate_row(const BackwardScratch<T>& scratch, std::int64_t row, KeyRange range, float scale) {
  constexpr Whole<kScoreVectors> kWhole;
  const std::int64_t at = row * kKeyBlock;
  const float lse = scratch.lse[row], delta = scratch.delta[row];
  for (std::int64_t i = at; i < at + range.hi; i += kScores) {
    const Scores p = exp2(load(scratch.scores + i, kWhole) * (scale * kLog2E) - lse);
    const Scores ds = p * (load(scratch.dp + i, kWhole) - delta) * scale;
    store(p, scratch.p + i, kWhole);
    store(ds, scratch.ds + i, kWhole);
  }
  fill_outside(scratch.p + at, range, T{});
  fill_outside(scratch.ds + at, range, T{});
}

template <typename T>
void backward_block(const AttentionSequence& sequence, const AttentionHeadBackward& head,
                    const BackwardScratch<T>& scratch, NonfiniteQueries nonfinite, const BlockPair& pair) {
  using Math = typename ElementOf<T>::Math;
  const BlockSizes& sizes = scratch.sizes;
  const BackwardPack packed(sizes);
  const std::int64_t rows = pair.rows, keys = pair.keys, d = sequence.head_dim, block = pair.key / kKeyBlock;
  multiply_to_keys<Math>(pair, {scratch.q_rows, sizes.head_row}, head.packed + block * sizes.key_lanes,
                         sizes.head_steps, scratch.scores);
  multiply_to_keys<Math>(pair, {scratch.dout_rows, sizes.head_row},
                         head.packed + packed.values + block * sizes.key_lanes, sizes.head_steps, scratch.dp);
  for (std::int64_t row = 0; row < rows; ++row) {
    const KeyRange range = within_block(visible_keys(sequence, pair.begin + row), pair.key);
    differentiate_row(scratch, row, range, sequence.scale);
  }
  const std::int64_t query_steps = steps_of(sequence.element, rows), offset = pair.key * sizes.width;
  const PackedRows p = pack_as_rows(scratch.p, kKeyBlock, keys, rows, false, scratch.across);
  multiply_over_queries<Math>(pair, p, scratch.dout_columns, d, query_steps, head.dv + offset, sizes.width);
  const PackedRows ds = pack_as_rows(scratch.ds, kKeyBlock, keys, rows, false, scratch.across);
  multiply_over_queries<Math>(pair, ds, scratch.q_columns, d, query_steps, head.dk + offset, sizes.width);
  const PackedRows ds_rows = pack_as_rows(scratch.ds, kKeyBlock, rows, keys, true, scratch.ds_rows);
  multiply_over_keys<Math>(pair, ds_rows, head.packed + packed.keys_across + block * sizes.head_lanes, d,
                           steps_of(sequence.element, keys), scratch.dq, sizes.width);
  if (nonfinite.dout) {
    add_nonfinite<SumOver::queries>(sequence, pair, scratch.p, head.dout, head.dv + offset, sizes.width);
  }
  if (nonfinite.q) {
    add_nonfinite<SumOver::queries>(sequence, pair, scratch.ds, head.head.q, head.dk + offset, sizes.width);
  }
  if (head.packed[packed.flags + block] != 0) {
    add_nonfinite<SumOver::keys>(sequence, pair, scratch.ds, head.head.k, scratch.dq, sizes.width);
  }
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

/// Blocks of queries and of keys in ascending order: the order in which dk and dv are summed.
template <typename T>
void backward(const AttentionSequence& sequence, const AttentionHeadBackward& head, float* memory) {
  const BackwardScratch<T> scratch(sequence, memory);
  const BlockSizes& sizes = scratch.sizes;
  const std::int64_t gradients = gradient_size(sequence);
  for (std::int64_t i = 0; i < gradients; ++i) head.dk[i] = head.dv[i] = 0;
  for (std::int64_t begin = 0; begin < sequence.query_len; begin += kQueries) {
    const std::int64_t rows = lower(kQueries, sequence.query_len - begin);
    const NonfiniteQueries nonfinite = begin_queries(sequence, head, scratch, begin, rows);
    const KeyRange range = visible_keys(sequence, begin, begin + rows);
    for (std::int64_t block = range.lo / kKeyBlock; block * kKeyBlock < range.hi; ++block) {
      backward_block(sequence, head, scratch, nonfinite, BlockPair(sequence, begin, rows, block * kKeyBlock));
    }
    store_gradient<T>(scratch.dq, sizes.width, rows, sequence.head_dim, head.dq, begin);
  }
}

template <typename T>
void pack(const AttentionSequence& sequence, const HeadMatrix& k, const HeadMatrix& v, float* memory) {
  const BackwardPack packed{BlockSizes(sequence)};
  pack_key_blocks<T>(sequence, k, memory);
  pack_key_blocks<T>(sequence, v, memory + packed.values);
  pack_key_blocks_across<T>(sequence, k, memory + packed.keys_across, memory + packed.flags);
}

template <typename T>
void sum_heads(const AttentionSequence& sequence, float* gradients, std::int64_t heads,
               const HeadMatrix& to) {
  const std::int64_t size = gradient_size(sequence), width = BlockSizes(sequence).width;
  for (std::int64_t head = 1; head < heads; ++head) {
    for (std::int64_t i = 0; i < size; ++i) gradients[i] += gradients[head * size + i];
  }
  store_gradient<T>(gradients, width, sequence.key_len, sequence.head_dim, to, 0);
}

inline std::int64_t backward_pack_size(const AttentionSequence& sequence) {
  return BackwardPack(BlockSizes(sequence)).size;
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
