/// Products of few rows (AVX-512 with BF16 and VBMI): the columns are read once, transposed, widened and multiplied at once.
/// With a row or two, memory should be the limit and not the arithmetic; what is to be saved are shuffles, of which the
/// processor starts one 512-bit one a cycle.
///
/// The columns lie along the contraction. A tile of 64 columns is transposed through the innermost cache, a cache line of each
/// after the other, ends of columns and of the contraction as zeros. Four vectors of 16 columns are multiplied in turn: the latency
/// of a sum's products is that of several shuffles. Sums are those of gemm.h, in the same order.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/few_rows_fetches.h"
#include "ops/cpu/kernels/few_rows_words.h"
#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/store_output.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // as in pack_pairs.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr std::int64_t kMostFewRows = 4;

/// A line of each of a tile's columns, transposed: word w of 16 columns in word[w][vector].
struct ColumnWords {
  alignas(64) ColumnWord word[kLineWords];
};

/// Groups of four columns of a vector, which are transposed together; while all are, as many words are multiplied.
constexpr int kGroups = kVector / 4;
static_assert(kGroups * kFewRowsVectors == kLineWords);

/// Transposes a line of 16 columns, four columns at a time: 4 x 4 words in each 128 bits by shuffles, and 128 bits by where they are
/// stored, which takes none.
template <class Words>
class LineOfVector {
 public:
  LineOfVector(const ColumnBytes& columns, std::int64_t line, std::int64_t vector, ColumnWords& to)
      : stride_(columns.stride),
        from_(columns.data + vector * kVector * stride_ + line * kLineBytes),
        columns_(columns.count - vector * kVector),
        bytes_(columns.bytes - line * kLineBytes),
        to_(reinterpret_cast<__m128i*>(&to.word[0][vector])) {}

  [[gnu::always_inline]] void load(int group) const {
    const std::uint8_t* const from = from_ + 4 * group * stride_;
    if (__builtin_expect(columns_ < kVector || bytes_ < kLineBytes, 0)) return load_part(group);
    __m512i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_si512(from + i * stride_);
    store(x, to_ + group);
  }

 private:
  [[gnu::noinline]] void load_part(int group) const {
    if (bytes_ <= 0) return;
    const auto valid = low_bits<__mmask64>(bytes_);
    __m512i x[4];
    for (int i = 0; i < 4; ++i) {
      const int column = 4 * group + i;
      x[i] = _mm512_maskz_loadu_epi8(column < columns_ ? valid : __mmask64{0}, from_ + column * stride_);
    }
    store(x, to_ + group);
  }

  [[gnu::always_inline]] static void store(__m512i (&x)[4], __m128i* to) {
    Words::transpose(x);
    constexpr int kWord = kFewRowsVectors * kVector / 4;  // 128 bits a word of all columns
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      _mm_store_si128(to + j * kWord, _mm512_castsi512_si128(x[j]));
      _mm_store_si128(to + (4 + j) * kWord, _mm512_extracti32x4_epi32(x[j], 1));
      _mm_store_si128(to + (8 + j) * kWord, _mm512_extracti32x4_epi32(x[j], 2));
      _mm_store_si128(to + (12 + j) * kWord, _mm512_extracti32x4_epi32(x[j], 3));
    }
  }

  std::int64_t stride_;
  const std::uint8_t* from_;
  std::int64_t columns_, bytes_;
  __m128i* to_;
};

/// Columns [tile.begin, tile.end), at most kFewRowsColumns. With every word that is multiplied, four columns are transposed: shuffles
/// in a row would keep all else waiting. They are a line ahead, and one vector more: a word cannot be read at once when its parts
/// have just been stored.
template <class Words, int Rows>
void multiply_few_rows(const FewRowsTile& tile) {
  constexpr int kAhead = kFewRowsVectors + 1, kLines = 4;  // three are in use, the remainder is a mask
  const Operand& b = tile.columns;
  const std::int64_t stride = b.stride * Words::kElementBytes;
  const ColumnBytes columns{static_cast<const std::uint8_t*>(b.data) + tile.begin * stride, stride,
                            tile.end - tile.begin, b.contraction * Words::kElementBytes};
  const std::int64_t words = (columns.bytes + kWordBytes - 1) / kWordBytes;
  Fetches fetches(tile, Words::kElementBytes);
  const Words multiplier(b.element);
  RowsInTurn<Rows> rows;
  for (int r = 0; r < Rows; ++r) rows.row_begin[r] = tile.rows + r * tile.row_stride;
  FewRowsSums<Rows> sum = {};
  ColumnWords lines[kLines];
  const auto vector_at = [&](std::int64_t index) {
    const std::int64_t line = index / kFewRowsVectors;
    return LineOfVector<Words>(columns, line, index % kFewRowsVectors, lines[line % kLines]);
  };
  for (int ahead = 0; ahead < kAhead; ++ahead) {
    const LineOfVector<Words> vector = vector_at(ahead);
    for (int group = 0; group < kGroups; ++group) vector.load(group);
  }
  for (std::int64_t first = 0; first < words; first += kGroups) {
    const LineOfVector<Words> ahead = vector_at(first / kGroups + kAhead);
    const std::int64_t line = first / kLineWords, w = first % kLineWords;
    const ColumnWord* const word = lines[line % kLines].word + w;
    const int count = static_cast<int>(lower(kGroups, words - first));
#pragma GCC unroll 1
    for (int i = 0; i < count; ++i) {
      fetches.begin_word(line, w + i);
      ahead.load(i);
      multiplier.template multiply<Rows>(
          word[i], rows, (first + i) * Words::kUnits, [&](int v) { fetches.fetch(v); }, sum);
    }
  }
  StoreOutput{tile.out, 0, tile.begin, Rows, columns.count}.finish(sum);
}

/// Rows of pairs are as GemmKernels has rows that stand one after the other.
inline std::int64_t few_rows_stride_of_pairs(const Operand& rows) {
  return row_stride(rows.element, rows.contraction);
}
inline void pack_few_rows_as_pairs(const Operand& rows, float* packed) {
  pack_row_pairs_in_turn(rows, 0, rows.lanes, packed, few_rows_stride_of_pairs(rows));
}

/// For Fp8Words, units of a row of FP8 numbers are FP32 numbers, up to a whole vector.
inline std::int64_t few_rows_stride(const Operand& rows) {
  return row_stride(rows.element == Element::bf16 ? Element::bf16 : Element::f32, rows.contraction);
}
inline void pack_few_rows(const Operand& rows, float* packed) {
  if (rows.element == Element::bf16) return pack_few_rows_as_pairs(rows, packed);
  const std::int64_t stride = few_rows_stride(rows);
  const Fp8Pairs source(rows);
  for (std::int64_t lane = 0; lane < rows.lanes; ++lane, packed += stride) {
    for (std::int64_t k = 0; k < rows.contraction; k += kVector) {
      _mm512_store_si512(packed + k, source.numbers(lane, k, low_bits<__mmask16>(rows.contraction - k)));
    }
  }
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
