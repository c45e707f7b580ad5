/// Attention's forward pass, for one block of queries of one head.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/attention_blocks.h"
#include "ops/cpu/kernels/attention_softmax.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Where the packed forms of one key/value head begin: keys, values across, and the blocks' flags.
struct ForwardPack {
  explicit ForwardPack(const BlockSizes& sizes)
      : values(sizes.blocks * sizes.key_lanes),
        flags(values + sizes.blocks * sizes.head_lanes),
        size(flags + sizes.flags) {}
  std::int64_t values, flags, size;
};

template <typename T>
struct ForwardScratch {
  ForwardScratch(const BlockSizes& sizes, float* memory) {
    const ScratchPieces take{memory, size};
    queries = take(kQueryBlock * sizes.head_row);
    scores = take(kQueryBlock * kKeyBlock);
    probabilities = reinterpret_cast<T*>(take(kQueryBlock * kKeyBlock));
    packed_probabilities = take(kQueryBlock * sizes.key_row);
    softmax = SoftmaxRows(take, kQueryBlock, sizes.width);
  }
  std::int64_t size = 0;
  float *queries, *scores;
  T* probabilities;
  float* packed_probabilities;
  SoftmaxRows softmax;
};

template <typename T>
std::int64_t forward_scratch(const AttentionSequence& sequence) {
  const BlockSizes sizes(sequence);
  return ForwardScratch<T>(sizes, nullptr).size;
}

template <typename T>
void forward(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
             std::int64_t begin, std::int64_t end, float* memory) {
  using Math = typename ElementOf<T>::Math;
  const BlockSizes sizes(sequence);
  const ForwardPack where(sizes);
  const float* packed_values = packed + where.values;
  const ForwardScratch<T> scratch(sizes, memory);
  const std::int64_t rows = end - begin, d = sequence.head_dim;
  const PackedRows queries =
      pack_as_rows(row_of<T>(head.q, begin), head.q.stride, rows, d, true, scratch.queries);
  // Whole panels: one query of a cached sequence does not pay for kQueryBlock of them.
  scratch.softmax.start(round_up(rows, kRows));

  const KeyRange range = visible_keys(sequence, begin, end);
  for (std::int64_t block = range.lo / kKeyBlock; block * kKeyBlock < range.hi; ++block) {
    const BlockPair pair(sequence, begin, rows, block * kKeyBlock);
    multiply_to_keys<Math>(pair, queries, packed + block * sizes.key_lanes, sizes.head_steps, scratch.scores);
    for (std::int64_t row = 0; row < rows; ++row) {
      scratch.softmax.add(row, within_block(visible_keys(sequence, begin + row), pair.key),
                          sequence.scale * kLog2E, scratch.scores + row * kKeyBlock,
                          scratch.probabilities + row * kKeyBlock);
    }
    const PackedRows probabilities =
        pack_as_rows(scratch.probabilities, kKeyBlock, rows, pair.keys, true, scratch.packed_probabilities);
    multiply_over_keys<Math>(pair, probabilities, packed_values + block * sizes.head_lanes, d,
                             steps_of(sequence.element, pair.keys), scratch.softmax.out, sizes.width);
    if (packed[where.flags + block] != 0) {
      add_nonfinite<SumOver::keys>(sequence, pair, scratch.probabilities, head.v, scratch.softmax.out,
                                   sizes.width);
    }
  }
  scratch.softmax.template store_results<T>(sequence, head, begin, end);
}

inline std::int64_t forward_pack_size(const AttentionSequence& sequence) {
  return ForwardPack(BlockSizes(sequence)).size;
}

template <typename T>
void pack_values(const AttentionSequence& sequence, const HeadMatrix& v, float* packed) {
  const ForwardPack where{BlockSizes(sequence)};
  pack_key_blocks_across<T>(sequence, v, packed + where.values, packed + where.flags);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
