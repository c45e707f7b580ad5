/// What the forward and backward kernels of attention share: packed blocks, the visible keys of a query,
/// exponentials.
///
/// For kernel files only: everything but the backward entry points is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/attention.h"
#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {

extern const AttentionBackwardKernels attention_backward_kernels;

namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
static_assert(kKeyBlock % kRows == 0 && kQueryBlock % kRows == 0);

/// Scores that are made probabilities, or their gradients, at once.
constexpr int kScoreVectors = 2;
constexpr std::int64_t kScores = kScoreVectors * kLanes;
using Scores = F32<kScoreVectors>;
static_assert(kKeyBlock % kScores == 0);

template <typename T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr Element kElement = Element::f32;
  using Math = MultiplyAdd;
};
template <>
struct ElementOf<Bf16> {
  static constexpr Element kElement = Element::bf16;
  using Math = Fp8Math;  // denormals do not matter here: no level need flush them
};

template <typename T>
Operand operand(const T* data, std::int64_t stride, std::int64_t lanes, std::int64_t contraction,
                bool along) {
  return {.data = data,
          .stride = stride,
          .lanes = lanes,
          .contraction = contraction,
          .element = ElementOf<T>::kElement,
          .along_contraction = along};
}

/// Numbers of floats of the pieces of scratch, all multiples of 16 so that all stay aligned.
struct BlockSizes {
  explicit BlockSizes(const AttentionSequence& sequence)
      : blocks((sequence.key_len + kKeyBlock - 1) / kKeyBlock),
        width(round_up(sequence.head_dim, kLanes)),
        head_steps(steps_of(sequence.element, sequence.head_dim)),
        head_row(row_stride(sequence.element, sequence.head_dim)),
        key_row(row_stride(sequence.element, kKeyBlock)),
        key_lanes(kKeyBlock * head_steps),
        head_lanes(width * steps_of(sequence.element, kKeyBlock)),
        flags(round_up(blocks, kLanes)) {}
  std::int64_t blocks;
  std::int64_t width;       ///< of a row of head_dim FP32 numbers
  std::int64_t head_steps;  ///< of a contraction over head_dim
  std::int64_t head_row;    ///< one packed row, contraction over head_dim
  std::int64_t key_row;     ///< one packed row, contraction over a block of keys
  std::int64_t key_lanes;   ///< one packed block of keys, contraction over head_dim
  std::int64_t head_lanes;  ///< one packed block with lanes along head_dim, contraction over keys
  std::int64_t flags;       ///< one number for every block of keys
};

/// Packs a whole matrix as rows.
template <typename T>
PackedRows pack_as_rows(const T* data, std::int64_t stride, std::int64_t lanes, std::int64_t contraction,
                        bool along, float* packed) {
  const Operand source = operand(data, stride, lanes, contraction, along);
  pack_rows(source, 0, lanes, packed);
  return {packed, packed_row_stride(source)};
}

/// Hands out consecutive pieces of `memory`, or, if that is null, only adds up their sizes.
struct ScratchPieces {
  float* memory;
  std::int64_t& size;
  float* operator()(std::int64_t floats) const {
    float* piece = memory ? memory + size : nullptr;
    size += floats;
    return piece;
  }
};

/// The keys [lo, hi) that a query sees.
struct KeyRange {
  std::int64_t lo, hi;
};

inline KeyRange visible_keys(const AttentionSequence& sequence, std::int64_t query) {
  const std::int64_t first = sequence.first_key ? sequence.first_key[query] : 0;
  return {first > 0 ? first : 0, sequence.key_len - sequence.query_len + query + 1};
}

/// The union over queries [begin, end).
inline KeyRange visible_keys(const AttentionSequence& sequence, std::int64_t begin, std::int64_t end) {
  KeyRange range = visible_keys(sequence, end - 1);
  for (std::int64_t query = begin; query < end; ++query)
    range.lo = lower(range.lo, visible_keys(sequence, query).lo);
  return range;
}

/// `range` relative to the block that starts at `key`, within [0, kKeyBlock]; empty as {0, 0}.
inline KeyRange within_block(KeyRange range, std::int64_t key) {
  const std::int64_t lo = range.lo > key ? range.lo - key : 0, hi = lower(range.hi - key, kKeyBlock);
  return lo < hi ? KeyRange{lo, hi} : KeyRange{0, 0};
}

/// A block of queries [begin, begin + rows) against the keys [key, key + keys): which parts of its products
/// the causal mask leaves.
struct BlockPair {
  std::int64_t begin, rows, key, keys;
  std::int64_t first_position;  ///< of query `begin`

  BlockPair(const AttentionSequence& sequence, std::int64_t first_query, std::int64_t query_count,
            std::int64_t first_key)
      : begin(first_query),
        rows(query_count),
        key(first_key),
        keys(lower(kKeyBlock, sequence.key_len - first_key)),
        first_position(sequence.key_len - sequence.query_len + first_query) {}

  /// Keys that the panel of queries from `row` on sees.
  std::int64_t visible(std::int64_t row) const {
    const std::int64_t last = lower(row + kRows, rows) - 1;
    const std::int64_t count = lower(keys, first_position + last + 1 - key);
    return count > 0 ? count : 0;
  }
  /// Queries, even in number, that come before the first one to see the panel of keys from `row` on.
  std::int64_t unseeing(std::int64_t row) const {
    const std::int64_t count = lower(rows, key + row - first_position);
    return count > 0 ? count / 2 * 2 : 0;
  }
};

/// Rows are queries, columns are keys: scores.
template <class Math>
void multiply_to_keys(const BlockPair& pair, PackedRows queries, const float* keys, std::int64_t steps,
                      float* scores) {
  multiply_block<Math>(queries, keys, pair.rows, pair.keys, steps, scores, kKeyBlock, false,
                       [&](std::int64_t row) {
                         return NeededPart{pair.visible(row), 0, steps};
                       });
}

/// Rows are queries, the contraction runs over keys: sums of values.
template <class Math>
void multiply_over_keys(const BlockPair& pair, PackedRows weights, const float* values, std::int64_t columns,
                        std::int64_t steps, float* sums, std::int64_t stride) {
  multiply_block<Math>(weights, values, pair.rows, columns, steps, sums, stride, true, [&](std::int64_t row) {
    const std::int64_t end = (pair.visible(row) + Math::kStepSize - 1) / Math::kStepSize;
    return NeededPart{columns, 0, round_up(end, kStepMultiple)};
  });
}

/// Rows are keys, the contraction runs over queries: gradients of keys and values.
template <class Math>
void multiply_over_queries(const BlockPair& pair, PackedRows weights, const float* queries,
                           std::int64_t columns, std::int64_t steps, float* sums, std::int64_t stride) {
  multiply_block<Math>(weights, queries, pair.keys, columns, steps, sums, stride, true,
                       [&](std::int64_t row) {
                         const std::int64_t first = pair.unseeing(row) / Math::kStepSize;
                         return NeededPart{columns, first / kStepMultiple * kStepMultiple, steps};
                       });
}

/// Of a row's first `end` elements.
template <typename T>
void fill_outside(T* row, KeyRange range, T value, std::int64_t end = kKeyBlock) {
  for (std::int64_t i = 0; i < range.lo; ++i) row[i] = value;
  for (std::int64_t i = range.hi; i < end; ++i) row[i] = value;
}

template <typename T>
T* row_of(const HeadMatrix& matrix, std::int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.stride;
}

// A masked weight is zero, and zero times NaN or infinity is NaN: it would reach rows that do not see the key. So what masked
// weights multiply is packed with zeros in place of such numbers, and `add_nonfinite` adds these where they are seen.

/// Replaces what is not finite in `units` packed units by zeros; true if there was any.
template <typename T>
bool zero_nonfinite(float* packed, std::int64_t units) {
  constexpr bool kPairs = ElementOf<T>::kElement == Element::bf16 && Fp8Math::kStepSize == 2;
  std::uint32_t found = 0;
  for (std::int64_t i = 0; i < units; ++i) {
    const auto bits = __builtin_bit_cast(std::uint32_t, packed[i]);
    std::uint32_t bad = (bits & 0x7F800000u) == 0x7F800000u ? (kPairs ? 0xFFFF0000u : 0xFFFFFFFFu) : 0u;
    if (kPairs) bad |= (bits & 0x7F80u) == 0x7F80u ? 0xFFFFu : 0u;
    found |= bad;
    packed[i] = __builtin_bit_cast(float, bits & ~bad);
  }
  return found != 0;
}

/// Packs `count` rows of a [.., head_dim] matrix with lanes along head_dim; true if zeros replace something that is not finite.
template <typename T>
bool pack_across(const AttentionSequence& sequence, const T* data, std::int64_t stride, std::int64_t count,
                 float* packed) {
  const std::int64_t d = sequence.head_dim;
  pack_columns(operand(data, stride, d, count, false), 0, d, packed);
  return zero_nonfinite<T>(packed, round_up(d, kVector) * steps_of(sequence.element, count));
}

/// Packs every block of keys of a [key_len, head_dim] matrix with keys as lanes.
template <typename T>
void pack_key_blocks(const AttentionSequence& sequence, const HeadMatrix& matrix, float* packed) {
  const BlockSizes sizes(sequence);
  for (std::int64_t block = 0; block < sizes.blocks; ++block) {
    const std::int64_t key = block * kKeyBlock, keys = lower(kKeyBlock, sequence.key_len - key);
    pack_columns(operand(row_of<T>(matrix, key), matrix.stride, keys, sequence.head_dim, true), 0, keys,
                 packed + block * sizes.key_lanes);
  }
}

/// The same with keys as the contraction; a block's flag is not 0 if something in it was not finite.
template <typename T>
void pack_key_blocks_across(const AttentionSequence& sequence, const HeadMatrix& matrix, float* packed,
                            float* flags) {
  const BlockSizes sizes(sequence);
  for (std::int64_t block = 0; block < sizes.blocks; ++block) {
    const std::int64_t key = block * kKeyBlock, keys = lower(kKeyBlock, sequence.key_len - key);
    flags[block] =
        pack_across(sequence, row_of<T>(matrix, key), matrix.stride, keys, packed + block * sizes.head_lanes);
  }
}

enum class SumOver { keys, queries };

/// For every query and key of `pair` that it sees: sums[query] += weight * source[key] (or, over queries, sums[key] += weight *
/// source[query]) for the elements of `source` that are not finite. weights[query * kKeyBlock + key], both counted in the pair.
template <SumOver over, typename T>
void add_nonfinite(const AttentionSequence& sequence, const BlockPair& pair, const T* weights,
                   const HeadMatrix& source, float* sums, std::int64_t stride) {
  for (std::int64_t query = 0; query < pair.rows; ++query) {
    const KeyRange range = within_block(visible_keys(sequence, pair.begin + query), pair.key);
    for (std::int64_t key = range.lo; key < range.hi; ++key) {
      const float weight = to_f32(weights[query * kKeyBlock + key]);
      const T* from = row_of<T>(source, over == SumOver::keys ? pair.key + key : pair.begin + query);
      float* to = sums + (over == SumOver::keys ? query : key) * stride;
      for (std::int64_t i = 0; i < sequence.head_dim; ++i) {
        const float x = to_f32(from[i]);
        if (!(__builtin_fabsf(x) < __builtin_inff())) to[i] += weight * x;
      }
    }
  }
}

[[gnu::always_inline]] inline NativeF32 fused(NativeF32 a, NativeF32 b, NativeF32 c) {
  Vector sum = c;
  MultiplyAdd::apply(sum, a, b);
  return sum;
}

/// 2^x for x <= 127, relative error below 2e-7; 0 below -126; NaN for a NaN that arithmetic made. Polynomial
/// of 2^r, |r| <= 1/2: Cephes exp2f (S. Moshier).
template <int N>
[[gnu::always_inline]] inline F32<N> exp2(F32<N> x) {
  // 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits.
  constexpr float kRound = 12582912.0f;
  const F32<N> shifted = x + kRound;
  const F32<N> r = x - (shifted - kRound);
  F32<N> power = for_parts<F32<N>>([&](int i) {
    NativeF32 p = fused(broadcast(1.535336188e-4f), r.part[i], broadcast(1.339887440e-3f));
    p = fused(p, r.part[i], broadcast(9.618437357e-3f));
    p = fused(p, r.part[i], broadcast(5.550332471e-2f));
    p = fused(p, r.part[i], broadcast(2.402264791e-1f));
    p = fused(p, r.part[i], broadcast(6.931472028e-1f));
    return fused(p, r.part[i], broadcast(1.0f));
  });
  power = float_of_bits(bits_of(power) + (bits_of(shifted) << 23));
  return select(f32s<N>(-126.0f) > x, f32s<N>(0.0f), power);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
