/// Attention of one query (AVX-512 with BF16): heads that share keys and values are the rows of products that read both where
/// they stand. Sums, their order and the blocks of the softmax are those of many queries (attention.cpp).
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/attention_softmax.h"
#include "ops/cpu/kernels/few_rows.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

struct QueryScratch {
  QueryScratch(const AttentionSequence& sequence, float* memory) {
    const BlockSizes sizes(sequence);
    const ScratchPieces take{memory, size};
    scores_stride = sizes.blocks * kKeyBlock;
    head_row = sizes.head_row;
    queries = take(kMostFewRows * head_row);
    scores = take(kMostFewRows * scores_stride);
    probabilities = reinterpret_cast<Bf16*>(take(kMostFewRows * kKeyBlock));
    packed_probabilities = take(kMostFewRows * sizes.key_row);
    softmax = SoftmaxRows(take, kMostFewRows, sizes.width);
  }
  std::int64_t size = 0, scores_stride, head_row;
  float *queries, *scores;
  Bf16* probabilities;
  float* packed_probabilities;
  SoftmaxRows softmax;
};

/// The scores of all keys.
template <int Rows>
void score_keys(const AttentionSequence& sequence, const AttentionHead& head, const QueryScratch& scratch) {
  const std::int64_t d = sequence.head_dim;
  pack_few_rows(operand(row_of<Bf16>(head.q, 0), head.q.stride, Rows, d, true), scratch.queries);
  FewRowsTile tile{
      .rows = scratch.queries,
      .row_stride = scratch.head_row,
      .row_count = Rows,
      .columns = operand(row_of<Bf16>(head.k, 0), head.k.stride, sequence.key_len, d, true),
      .next = {},
      .out = {.data = scratch.scores, .stride = scratch.scores_stride},
  };
  for (std::int64_t key = 0; key < sequence.key_len; key = tile.end) {
    tile.begin = key;
    tile.end = lower(sequence.key_len, key + kFewRowsColumns);
    tile.fetched = key > 0 ? tile.end - tile.begin : 0;
    // Keys that follow; then the first values, which are multiplied next.
    const HeadMatrix& matrix = tile.end < sequence.key_len ? head.k : head.v;
    const std::int64_t from = tile.end < sequence.key_len ? tile.end : 0;
    constexpr std::int64_t kBytes = sizeof(Bf16);
    tile.next = {row_of<Bf16>(matrix, from), matrix.stride * kBytes, d * kBytes,
                 lower(sequence.key_len - from, kFewRowsColumns)};
    multiply_few_rows<Bf16Words, Rows>(tile);
  }
}

/// Pairs of keys whose values are asked for before they are multiplied.
constexpr std::int64_t kValuesAhead = 16;

/// Adds packed weights times values of keys [key, key + keys) to columns [column, column + 16 Vectors) of the sums.
template <int Rows, int Vectors>
void add_values(const AttentionSequence& sequence, const AttentionHead& head, std::int64_t key,
                std::int64_t keys, std::int64_t column, PackedRows weights, const SoftmaxRows& softmax) {
  const Operand source =
      operand(row_of<Bf16>(head.v, key), head.v.stride, sequence.head_dim, sequence.key_len - key, false);
  const Bf16Pairs values(source);
  Vector sum[Rows][Vectors];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      sum[r][v] = *reinterpret_cast<const Vector*>(softmax.out + r * softmax.width + column + v * kVector);
  }
  for (std::int64_t k = 0; k < keys; k += 2) {
    for (std::int64_t ahead = k + 2 * kValuesAhead; ahead < k + 2 * kValuesAhead + 2; ++ahead)
      if (ahead < source.contraction) values.prefetch_across(column, ahead);
    __m512i units[Vectors];
    values.across(column, sequence.head_dim - column, k, k + 1 < keys, units);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Vector weight = broadcast(weights.data[r * weights.stride + k / 2]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) PairDot::apply(sum[r][v], weight, reinterpret_cast<Vector>(units[v]));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      *reinterpret_cast<Vector*>(softmax.out + r * softmax.width + column + v * kVector) = sum[r][v];
  }
}

template <int Rows>
void attend_one_query(const AttentionSequence& sequence, const AttentionHead& head, float* memory) {
  const QueryScratch scratch(sequence, memory);
  score_keys<Rows>(sequence, head, scratch);
  scratch.softmax.start(Rows);
  for (std::int64_t key = 0; key < sequence.key_len; key += kKeyBlock) {
    const std::int64_t keys = lower(kKeyBlock, sequence.key_len - key);
    for (int r = 0; r < Rows; ++r) {
      scratch.softmax.add(r, {0, keys}, sequence.scale * kLog2E,
                          scratch.scores + r * scratch.scores_stride + key,
                          scratch.probabilities + r * kKeyBlock);
    }
    const Operand probabilities = operand(scratch.probabilities, kKeyBlock, Rows, keys, true);
    pack_few_rows(probabilities, scratch.packed_probabilities);
    const PackedRows weights{scratch.packed_probabilities, packed_row_stride(probabilities)};
    constexpr int kMost = kMaxAcross;
    std::int64_t column = 0;
    for (; sequence.head_dim - column > (kMost - 1) * kVector; column += kMost * kVector)
      add_values<Rows, kMost>(sequence, head, key, keys, column, weights, scratch.softmax);
    for (; column < sequence.head_dim; column += kVector)
      add_values<Rows, 1>(sequence, head, key, keys, column, weights, scratch.softmax);
  }
  scratch.softmax.store_results<Bf16>(sequence, head, 0, Rows);
}

std::int64_t one_query_scratch(const AttentionSequence& sequence) {
  return QueryScratch(sequence, nullptr).size;
}

void attend_one_query_of_heads(const AttentionSequence& sequence, const AttentionHead& head,
                               std::int64_t heads, float* scratch) {
  static_assert(kMostFewRows == 4);
  if (heads == 1) return attend_one_query<1>(sequence, head, scratch);
  if (heads == 2) return attend_one_query<2>(sequence, head, scratch);
  if (heads == 3) return attend_one_query<3>(sequence, head, scratch);
  attend_one_query<4>(sequence, head, scratch);
}

constexpr OneQueryKernels kOneQueryKernels = {
    .heads = kMostFewRows,
    .scratch = one_query_scratch,
    .forward = attend_one_query_of_heads,
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
