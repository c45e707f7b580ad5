/// The softmax of attention over blocks of keys: its state from block to block, and the results.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/attention_blocks.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// How far scores may exceed what a row's sums count as its maximum before the sums are rescaled: 2^8 more is no danger to FP32,
/// and what is stored in BF16 is as precise at any scale. Most rows are scaled once, at their first block.
constexpr float kSlack = 8;

/// What rows of queries have gathered over the blocks of keys so far; `maximum` and `weights` are in units of log2.
struct SoftmaxRows {
  SoftmaxRows() = default;
  SoftmaxRows(const ScratchPieces& take, std::int64_t rows, std::int64_t row_width)
      : width(row_width),
        out(take(rows * row_width)),
        maximum(take(round_up(rows, kLanes))),
        weights(take(rows * kLanes)) {}

  /// Before the first key.
  void start(std::int64_t rows) const {
    for (std::int64_t i = 0; i < rows * width; ++i) out[i] = 0;
    for (std::int64_t i = 0; i < rows; ++i) maximum[i] = -__builtin_inff();
    for (std::int64_t i = 0; i < rows * kLanes; ++i) weights[i] = 0;
  }

  /// A block's scores of a row to probabilities. Scores outside `range` are overwritten.
  template <typename T>
  void add(std::int64_t row, KeyRange range, float scale, float* scores, T* probabilities) const {
    constexpr Whole<kScoreVectors> kWhole;
    if (range.lo == range.hi) return fill_outside(probabilities, range, T{});
    const std::int64_t end = round_up(range.hi, kScores);
    fill_outside(scores, range, -__builtin_inff(), end);
    f32x16 largest_scores = f32s(-__builtin_inff());
    for (std::int64_t i = 0; i < end; i += kScores) {
      largest_scores = max_each(load(scores + i, kWhole) * scale, largest_scores);
    }
    const float block_maximum = largest(largest_scores);
    // A NaN is to reach the sums: it fails the comparison.
    if (!(block_maximum <= maximum[row] + kSlack)) rescale(row, block_maximum);
    const float base = maximum[row];
    f32x16 sums = load(weights + row * kLanes, Full{});
    for (std::int64_t i = 0; i < end; i += kScores) {
      const Scores p = exp2(load(scores + i, kWhole) * scale - base);
      sums = add_each(sums, p);
      store(p, probabilities + i, kWhole);
    }
    store(sums, weights + row * kLanes, Full{});
    for (std::int64_t i = end; i < kKeyBlock; ++i) probabilities[i] = T{};
  }

  /// Rows [begin, end) of the head, of which `begin` is this state's first.
  template <typename T>
  void store_results(const AttentionSequence& sequence, const AttentionHead& head, std::int64_t begin,
                     std::int64_t end) const {
    for (std::int64_t row = 0; row < end - begin; ++row) {
      const float weight = sum(load(weights + row * kLanes, Full{}));
      // A query that sees no key has weight 0; its output is 0.
      const float factor = weight == 0 ? 0.0f : 1.0f / weight;
      T* to = row_of<T>(head.out, begin + row);
      const float* from = out + row * width;
      for_vectors(sequence.head_dim,
                  [&](std::int64_t d, auto lanes) { store(load(from + d, lanes) * factor, to + d, lanes); });
      if (head.lse) {
        head.lse[(begin + row) * sequence.lse_stride] = maximum[row] * kLn2 + __builtin_logf(weight);
      }
    }
  }

  /// Makes `new_maximum` what the row's earlier sums are in units of.
  void rescale(std::int64_t row, float new_maximum) const {
    const f32x16 shrink = exp2(f32s(maximum[row] - new_maximum));
    float *const sums = weights + row * kLanes, *const row_out = out + row * width;
    store(load(sums, Full{}) * shrink, sums, Full{});
    for (std::int64_t d = 0; d < width; d += kLanes)
      store(load(row_out + d, Full{}) * shrink, row_out + d, Full{});
    maximum[row] = new_maximum;
  }

  std::int64_t width = 0;  ///< of a row of `out`
  float* out = nullptr;
  float* maximum =
      nullptr;  ///< per row, of what its sums are in units of: no score exceeds it by more than kSlack
  float* weights = nullptr;  ///< sums of exponentials, per row and lane
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
