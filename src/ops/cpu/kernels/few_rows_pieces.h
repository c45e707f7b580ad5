/// Products of few rows and FP8 columns where the dot product of pairs is one operation (AMD's processors with AVX-512). What is scarce there
/// are shuffles, 512 bits of which start every cycle, and stores, one a cycle: 16 bytes of 16 columns are put together by loads.
///
/// A line of each of a tile's 64 columns is copied to where columns do not compete for the same sets of the innermost cache. From there
/// a vector takes 16 bytes of a column by a broadcast that keeps three quarters, and four such vectors are transposed within their
/// 128 bits to four words of 16 columns. Sums are those of gemm.h, in the same order.
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

/// In each 128 bits, of words of four columns: the first two codes of all four, then the last two, the first step of a pair above.
struct PairOrder {
  alignas(64) std::uint8_t index[64];
  constexpr PairOrder() : index() {
    for (int i = 0; i < 64; ++i) {
      const int half = i % 16 / 8, column = i % 8 / 2, step = 1 - i % 2;
      index[i] = static_cast<std::uint8_t>(4 * column + 2 * half + step);
    }
  }
};
constexpr PairOrder kPairOrder;

/// Words of four codes as two pairs of BF16 numbers.
class WordPairs {
 public:
  explicit WordPairs(Element element) : bytes_(element), order_(_mm512_load_si512(kPairOrder.index)) {}

  [[gnu::always_inline]] void widen(__m512i codes, Vector (&pair)[2]) const {
    const Widened two = bytes_.widen(_mm512_shuffle_epi8(codes, order_));
    pair[0] = reinterpret_cast<Vector>(two.first);
    pair[1] = reinterpret_cast<Vector>(two.last);
  }

 private:
  CodeBytes bytes_;
  __m512i order_;
};

/// A line of each of a tile's columns.
struct LineOfColumns {
  static constexpr int kPieceBytes = 16, kPieces = kLineBytes / kPieceBytes,
                       kPieceWords = kPieceBytes / kWordBytes;
  alignas(64) std::uint8_t column[kFewRowsColumns][kLineBytes];

  /// Copies line `line` of the columns from `vector` * kVector on, as many; beyond ends zeros.
  [[gnu::always_inline]] void copy(const ColumnBytes& columns, std::int64_t line, std::int64_t vector) {
    const std::int64_t begin = vector * kVector, bytes = columns.bytes - line * kLineBytes;
    if (bytes <= 0) return;
    if (__builtin_expect(bytes < kLineBytes || columns.count < begin + kVector, 0))
      return copy_part(columns, line, begin);
    const std::uint8_t* from = columns.data + begin * columns.stride + line * kLineBytes;
#pragma GCC unroll 16
    for (int c = 0; c < kVector; ++c, from += columns.stride) {
      _mm512_store_si512(column[begin + c], _mm512_loadu_si512(from));
      asm volatile("prefetcht0 %0" : : "m"(from[kLineBytes]));  // as fetch_line
    }
  }

  /// Words 4 * piece and the three that follow, of 16 columns each.
  [[gnu::always_inline]] void words(std::int64_t vector, std::int64_t piece,
                                    __m512i (&word)[kPieceWords]) const {
    const std::uint8_t* const from = column[vector * kVector] + piece * kPieceBytes;
    __m512i x[4];  // of columns c, 4 + c, 8 + c and 12 + c
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const auto at = [&](int quarter) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(from + (4 * quarter + c) * kLineBytes));
      };
      x[c] = _mm512_castsi128_si512(at(0));
      x[c] = _mm512_mask_broadcast_i32x4(x[c], 0x00F0, at(1));
      x[c] = _mm512_mask_broadcast_i32x4(x[c], 0x0F00, at(2));
      x[c] = _mm512_mask_broadcast_i32x4(x[c], 0xF000, at(3));
    }
    transpose_words(x);
#pragma GCC unroll 4
    for (int w = 0; w < kPieceWords; ++w) word[w] = x[w];
  }

 private:
  [[gnu::noinline]] void copy_part(const ColumnBytes& columns, std::int64_t line, std::int64_t begin) {
    const auto valid = low_bits<__mmask64>(columns.bytes - line * kLineBytes);
    for (std::int64_t c = begin; c < begin + kVector; ++c) {
      const std::uint8_t* const from = columns.data + c * columns.stride + line * kLineBytes;
      _mm512_store_si512(column[c], _mm512_maskz_loadu_epi8(c < columns.count ? valid : __mmask64{0}, from));
    }
  }
};

/// As multiply_few_rows.
template <int Rows>
void multiply_few_rows_of_codes(const FewRowsTile& tile) {
  constexpr int kPieceWords = LineOfColumns::kPieceWords, kPairs = 2 * kPieceWords;
  constexpr int kAtOnce = 2;  // vectors: the products of one take six cycles each, one after the other
  const Operand& b = tile.columns;
  const ColumnBytes columns{static_cast<const std::uint8_t*>(b.data) + tile.begin * b.stride, b.stride,
                            tile.end - tile.begin, b.contraction};
  Fetches fetches(tile, 1);
  const WordPairs pairs(b.element);
  RowsInTurn<Rows> rows;
  for (int r = 0; r < Rows; ++r) rows.row_begin[r] = tile.rows + r * tile.row_stride;
  FewRowsSums<Rows> sum = {};
  LineOfColumns lines[2];
  for (int vector = 0; vector < kFewRowsVectors; ++vector) lines[0].copy(columns, 0, vector);
  const std::int64_t pieces = (columns.bytes + LineOfColumns::kPieceBytes - 1) / LineOfColumns::kPieceBytes;
  for (std::int64_t index = 0; index < pieces; ++index) {
    const std::int64_t line = index / LineOfColumns::kPieces, piece = index % LineOfColumns::kPieces;
    lines[(line + 1) % 2].copy(columns, line + 1, piece);
#pragma GCC unroll 4
    for (int first = 0; first < kFewRowsVectors; first += kAtOnce) {
      __m512i word[kAtOnce][kPieceWords];
#pragma GCC unroll 4
      for (int v = 0; v < kAtOnce; ++v) lines[line % 2].words(first + v, piece, word[v]);
#pragma GCC unroll 4
      for (int w = 0; w < kPieceWords; ++w) {
#pragma GCC unroll 4
        for (int v = 0; v < kAtOnce; ++v) {
          const int number = w * kAtOnce + v;
          if (number % 4 == 0) fetches.begin_word(line, piece * kPieceWords + first + number / 4);
          fetches.fetch(number % 4);
          Vector pair[2];
          pairs.widen(word[v][w], pair);
#pragma GCC unroll 2
          for (int u = 0; u < 2; ++u) {
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r)
              PairDot::apply(sum[r][first + v], broadcast(rows.unit(r, index * kPairs + 2 * w + u)), pair[u]);
          }
        }
      }
    }
  }
  StoreOutput{tile.out, 0, tile.begin, Rows, columns.count}.finish(sum);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
