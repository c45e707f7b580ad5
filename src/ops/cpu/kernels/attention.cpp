#include "ops/cpu/kernels/attention.h"

#include "ops/cpu/kernels/attention_blocks.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Where the packed forms of one key/value head begin: keys, values across, and the blocks' flags.
struct PackedHead {
  explicit PackedHead(const BlockSizes& sizes)
      : values(sizes.blocks * sizes.key_lanes),
        flags(values + sizes.blocks * sizes.head_lanes),
        size(flags + sizes.flags) {}
  std::int64_t values, flags, size;
};

/// The running state of one block of queries; `maximum` and `weights` are in units of log2.
template <typename T>
struct ForwardScratch {
  ForwardScratch(const BlockSizes& sizes, float* memory) {
    const ScratchPieces take{memory, size};
    queries = take(kQueryBlock * sizes.head_row);
    scores = take(kQueryBlock * kKeyBlock);
    probabilities = reinterpret_cast<T*>(take(kQueryBlock * kKeyBlock));
    packed_probabilities = take(kQueryBlock * sizes.key_row);
    out = take(kQueryBlock * sizes.width);
    maximum = take(kQueryBlock);
    weights = take(kQueryBlock * kLanes);
  }
  std::int64_t size = 0;
  float *queries, *scores;
  T* probabilities;
  float *packed_probabilities, *out;
  float* maximum;  ///< of the scores seen, per query
  float* weights;  ///< sums of exponentials, per query and lane
};

template <typename T>
std::int64_t forward_scratch(const AttentionSequence& sequence) {
  const BlockSizes sizes(sequence);
  return ForwardScratch<T>(sizes, nullptr).size;
}

/// How far scores may exceed what a row's sums count as its maximum before the sums are rescaled: 2^8 more is no danger to FP32,
/// and what is stored in BF16 is as precise at any scale. Most rows are scaled once, at their first block.
constexpr float kSlack = 8;

/// Makes `maximum` what the row's earlier sums are in units of.
template <typename T>
void rescale_row(const ForwardScratch<T>& scratch, std::int64_t row, float maximum, std::int64_t width) {
  const f32x16 shrink = exp2(f32s(scratch.maximum[row] - maximum));
  float *weights = scratch.weights + row * kLanes, *out = scratch.out + row * width;
  store(load(weights, Full{}) * shrink, weights, Full{});
  for (std::int64_t d = 0; d < width; d += kLanes) store(load(out + d, Full{}) * shrink, out + d, Full{});
  scratch.maximum[row] = maximum;
}

/// One row of scores to probabilities.
template <typename T>
void softmax_row(const ForwardScratch<T>& scratch, std::int64_t row, KeyRange range, float scale,
                 std::int64_t width) {
  constexpr Whole<kScoreVectors> kWhole;
  float* scores = scratch.scores + row * kKeyBlock;
  T* probabilities = scratch.probabilities + row * kKeyBlock;
  if (range.lo == range.hi) return fill_outside(probabilities, range, T{});
  const std::int64_t end = round_up(range.hi, kScores);
  fill_outside(scores, range, -__builtin_inff(), end);
  f32x16 largest_scores = f32s(-__builtin_inff());
  for (std::int64_t i = 0; i < end; i += kScores) {
    largest_scores = max_each(load(scores + i, kWhole) * scale, largest_scores);
  }
  const float maximum = largest(largest_scores);
  // A NaN is to reach the sums: it fails the comparison.
  if (!(maximum <= scratch.maximum[row] + kSlack)) rescale_row(scratch, row, maximum, width);
  const float base = scratch.maximum[row];
  f32x16 weights = load(scratch.weights + row * kLanes, Full{});
  for (std::int64_t i = 0; i < end; i += kScores) {
    const Scores p = exp2(load(scores + i, kWhole) * scale - base);
    weights = add_each(weights, p);
    store(p, probabilities + i, kWhole);
  }
  store(weights, scratch.weights + row * kLanes, Full{});
  for (std::int64_t i = end; i < kKeyBlock; ++i) probabilities[i] = T{};
}

template <typename T>
void store_results(const AttentionSequence& sequence, const AttentionHead& head,
                   const ForwardScratch<T>& scratch, std::int64_t begin, std::int64_t end,
                   std::int64_t width) {
  for (std::int64_t row = 0; row < end - begin; ++row) {
    const float weight = sum(load(scratch.weights + row * kLanes, Full{}));
    // A query that sees no key has weight 0; its output is 0.
    const float factor = weight == 0 ? 0.0f : 1.0f / weight;
    T* to = row_of<T>(head.out, begin + row);
    const float* from = scratch.out + row * width;
    for_vectors(sequence.head_dim,
                [&](std::int64_t d, auto lanes) { store(load(from + d, lanes) * factor, to + d, lanes); });
    if (head.lse) {
      head.lse[(begin + row) * sequence.lse_stride] = scratch.maximum[row] * kLn2 + __builtin_logf(weight);
    }
  }
}

/// Before the first key. Whole panels: one query of a cached sequence does not pay for kQueryBlock of them.
template <typename T>
void start_rows(const ForwardScratch<T>& scratch, std::int64_t rows, std::int64_t width) {
  const std::int64_t count = round_up(rows, kRows);
  for (std::int64_t i = 0; i < count * width; ++i) scratch.out[i] = 0;
  for (std::int64_t i = 0; i < count; ++i) scratch.maximum[i] = -__builtin_inff();
  for (std::int64_t i = 0; i < count * kLanes; ++i) scratch.weights[i] = 0;
}

template <typename T>
void forward(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
             std::int64_t begin, std::int64_t end, float* memory) {
  using Math = typename ElementOf<T>::Math;
  const BlockSizes sizes(sequence);
  const PackedHead where(sizes);
  const float* packed_values = packed + where.values;
  const ForwardScratch<T> scratch(sizes, memory);
  const std::int64_t rows = end - begin, d = sequence.head_dim;
  const PackedRows queries =
      pack_as_rows(row_of<T>(head.q, begin), head.q.stride, rows, d, true, scratch.queries);
  start_rows(scratch, rows, sizes.width);

  const KeyRange range = visible_keys(sequence, begin, end);
  for (std::int64_t block = range.lo / kKeyBlock; block * kKeyBlock < range.hi; ++block) {
    const BlockPair pair(sequence, begin, rows, block * kKeyBlock);
    multiply_to_keys<Math>(pair, queries, packed + block * sizes.key_lanes, sizes.head_steps, scratch.scores);
    for (std::int64_t row = 0; row < rows; ++row) {
      softmax_row(scratch, row, within_block(visible_keys(sequence, begin + row), pair.key),
                  sequence.scale * kLog2E, sizes.width);
    }
    const PackedRows probabilities =
        pack_as_rows(scratch.probabilities, kKeyBlock, rows, pair.keys, true, scratch.packed_probabilities);
    multiply_over_keys<Math>(pair, probabilities, packed_values + block * sizes.head_lanes, d,
                             steps_of(sequence.element, pair.keys), scratch.out, sizes.width);
    if (packed[where.flags + block] != 0) {
      add_nonfinite<SumOver::keys>(sequence, pair, scratch.probabilities, head.v, scratch.out, sizes.width);
    }
  }
  store_results(sequence, head, scratch, begin, end, sizes.width);
}

std::int64_t packed_size(const AttentionSequence& sequence) {
  return PackedHead(BlockSizes(sequence)).size;
}

void pack_keys(const AttentionSequence& sequence, const HeadMatrix& k, float* packed) {
  if (sequence.element == Element::bf16) return pack_key_blocks<Bf16>(sequence, k, packed);
  pack_key_blocks<float>(sequence, k, packed);
}

void pack_values(const AttentionSequence& sequence, const HeadMatrix& v, float* packed) {
  const PackedHead where{BlockSizes(sequence)};
  float *const values = packed + where.values, *const flags = packed + where.flags;
  if (sequence.element == Element::bf16) return pack_key_blocks_across<Bf16>(sequence, v, values, flags);
  pack_key_blocks_across<float>(sequence, v, values, flags);
}

std::int64_t forward_scratch_any(const AttentionSequence& sequence) {
  return sequence.element == Element::bf16 ? forward_scratch<Bf16>(sequence)
                                           : forward_scratch<float>(sequence);
}

void forward_any(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
                 std::int64_t begin, std::int64_t end, float* scratch) {
  if (sequence.element == Element::bf16) return forward<Bf16>(sequence, head, packed, begin, end, scratch);
  forward<float>(sequence, head, packed, begin, end, scratch);
}

}  // namespace

const AttentionKernels attention_kernels = {
    .packed_size = packed_size,
    .pack_keys = pack_keys,
    .pack_values = pack_values,
    .forward_scratch = forward_scratch_any,
    .forward = forward_any,
    .backward = &attention_backward_kernels,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
