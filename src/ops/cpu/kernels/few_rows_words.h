/// Words of columns, 32 bits of each of 16 columns, widened and multiplied by rows (AVX-512 with BF16 and VBMI).
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack_pairs.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // as in pack_pairs.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr int kFewRowsVectors = 4;  ///< of 16 columns, multiplied in turn
constexpr std::int64_t kFewRowsColumns = kFewRowsVectors * kVector;
constexpr std::int64_t kLineBytes = 64, kWordBytes = 4, kLineWords = kLineBytes / kWordBytes;

/// Columns of a tile where they stand, each `bytes` long. Nothing beyond them is read: it counts as zeros.
struct ColumnBytes {
  const std::uint8_t* data;
  std::int64_t stride, count, bytes;
};

/// The same word of all columns of a tile.
using ColumnWord = __m512i[kFewRowsVectors];
template <int Rows>
using FewRowsSums = Vector[Rows][kFewRowsVectors];

/// Of four columns, in each 128 bits: word j of all four to [j].
[[gnu::always_inline]] inline void transpose_words(__m512i (&x)[4]) {
  const __m512i t[] = {_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]),
                       _mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3])};
  x[0] = _mm512_unpacklo_epi64(t[0], t[2]);
  x[1] = _mm512_unpackhi_epi64(t[0], t[2]);
  x[2] = _mm512_unpacklo_epi64(t[1], t[3]);
  x[3] = _mm512_unpackhi_epi64(t[1], t[3]);
}

/// Pairs of BF16 numbers.
class Bf16Words {
 public:
  static constexpr int kElementBytes = 2, kUnits = 1;  ///< packed pairs of a row that go with a word

  explicit Bf16Words(Element) {}

  [[gnu::always_inline]] static void transpose(__m512i (&x)[4]) { transpose_words(x); }

  /// Adds the products of a word and the rows' units from `step` on; calls between(v) before each vector.
  template <int Rows, class Between>
  [[gnu::always_inline]] void multiply(const ColumnWord& word, const RowsInTurn<Rows>& rows,
                                       std::int64_t step, const Between& between,
                                       FewRowsSums<Rows>& sum) const {
    Vector row[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) row[r] = broadcast(rows.unit(r, step));
#pragma GCC unroll 4
    for (int v = 0; v < kFewRowsVectors; ++v) {
      between(v);
      const __m512i units = _mm512_rol_epi32(word[v], 16);  // the first step is the upper half
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) PairDot::apply(sum[r][v], row[r], reinterpret_cast<Vector>(units));
    }
  }
};

/// Four FP8 codes, as FP32 numbers. Their products are exact, so fused operations have the bits of the dot product of pairs, which
/// on Intel's processors needs two shuffles to take its operands apart.
class Fp8Words {
 public:
  static constexpr int kElementBytes = 1, kUnits = 4;  ///< FP32 numbers of a row that go with a word

  explicit Fp8Words(Element element) : bytes_(element) {}

  /// Of four columns, in each 128 bits: the first two codes of word j of all four, and the last two, to [j].
  [[gnu::always_inline]] static void transpose(__m512i (&x)[4]) {
    const __m512i t[] = {_mm512_unpacklo_epi16(x[0], x[1]), _mm512_unpackhi_epi16(x[0], x[1]),
                         _mm512_unpacklo_epi16(x[2], x[3]), _mm512_unpackhi_epi16(x[2], x[3])};
    x[0] = _mm512_unpacklo_epi32(t[0], t[2]);
    x[1] = _mm512_unpackhi_epi32(t[0], t[2]);
    x[2] = _mm512_unpacklo_epi32(t[1], t[3]);
    x[3] = _mm512_unpackhi_epi32(t[1], t[3]);
  }

  template <int Rows, class Between>
  [[gnu::always_inline]] void multiply(const ColumnWord& word, const RowsInTurn<Rows>& rows,
                                       std::int64_t step, const Between& between,
                                       FewRowsSums<Rows>& sum) const {
#pragma GCC unroll 4
    for (int v = 0; v < kFewRowsVectors; ++v) {
      between(v);
      Vector number[kUnits];
      widen(word[v], number);
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
          MultiplyAdd::apply(sum[r][v], broadcast(rows.unit(r, step + u)), number[u]);
      }
    }
  }

 private:
  [[gnu::always_inline]] void widen(__m512i codes, Vector (&number)[kUnits]) const {
    const Widened pairs = bytes_.widen(codes);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      const __m512i two = u < 2 ? pairs.first : pairs.last;
      number[u] = reinterpret_cast<Vector>(
          u % 2 == 0 ? _mm512_slli_epi32(two, 16)
                     : _mm512_and_si512(two, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
    }
  }

  CodeBytes bytes_;
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
