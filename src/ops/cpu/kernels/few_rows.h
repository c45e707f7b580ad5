/// Products of few rows (AVX-512 with BF16 and VBMI): the columns are read once, transposed and widened in registers and
/// multiplied at once, nothing of them is written back. With a row or two, memory is the limit and not the arithmetic;
/// what is left to save are shuffles, of which the processor starts one 512-bit one a cycle.
///
/// The columns lie along the contraction. A turn copies 64 bytes of each of 64 columns side by side into the innermost
/// cache: columns that are a power of two apart would compete for its sets, and ends of columns and of the contraction
/// become zeros there. Sums are those of gemm.h, in the same order.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/store_output.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // as in pack_pairs.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr std::int64_t kMostFewRows = 4, kFewRowsColumns = 64;
constexpr std::int64_t kLineBytes = 64, kPieceBytes = 16;
constexpr int kPieces = kLineBytes / kPieceBytes;

/// The lines of a turn: those of one column after the other.
struct ColumnLines {
  alignas(64) std::uint8_t line[kFewRowsColumns][kLineBytes];
};

/// One piece of 16 columns, transposed: word w of column c in element c of words[w].
[[gnu::always_inline]] inline void load_words(const std::uint8_t (*lines)[kLineBytes], int piece,
                                              __m512i (&words)[4]) {
  // Lane l of rows[j] comes from column 4 l + j. Masked broadcasts are loads: they need no shuffle.
  __m512i rows[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto piece_of = [&](int lane) {
      return _mm_load_si128(reinterpret_cast<const __m128i*>(lines[4 * lane + j] + kPieceBytes * piece));
    };
    rows[j] = _mm512_broadcast_i32x4(piece_of(0));
    rows[j] = _mm512_mask_broadcast_i32x4(rows[j], 0x00F0, piece_of(1));
    rows[j] = _mm512_mask_broadcast_i32x4(rows[j], 0x0F00, piece_of(2));
    rows[j] = _mm512_mask_broadcast_i32x4(rows[j], 0xF000, piece_of(3));
  }
  const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]),
                low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
  const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]),
                high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
  words[0] = _mm512_unpacklo_epi64(low01, low23);
  words[1] = _mm512_unpackhi_epi64(low01, low23);
  words[2] = _mm512_unpacklo_epi64(high01, high23);
  words[3] = _mm512_unpackhi_epi64(high01, high23);
}

/// Bytes of a unit of each of 16 columns, from the low bytes of their four BF16 numbers (0-63) and the high ones (64-127).
constexpr ByteOrder make_unit_order(int pair) {
  ByteOrder order{};
  for (int p = 0; p < 64; ++p) {
    const int code = p / 4 * 4 + 2 * pair + (p & 2 ? 0 : 1);  // the first step of a pair is the upper half
    order.index[p] = static_cast<std::uint8_t>(code + (p & 1 ? 64 : 0));
  }
  return order;
}
constexpr ByteOrder kUnitOrder[] = {make_unit_order(0), make_unit_order(1)};

/// Makes units of the words of columns of FP8 codes.
class Fp8Words {
 public:
  static constexpr int kElementBytes = 1, kUnits = 2;

  explicit Fp8Words(Element element) {
    const int format = element == Element::e4m3 ? 0 : 1;
    for (int half = 0; half < 2; ++half) {
      low_[half] = _mm512_load_si512(kPairTables.low[format] + 64 * half);
      high_[half] = _mm512_load_si512(kPairTables.high[format] + 64 * half);
      order_[half] = _mm512_load_si512(kUnitOrder[half].index);
    }
  }
  [[gnu::always_inline]] void widen(__m512i codes, __m512i (&units)[kUnits]) const {
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
    const __m512i high =
        _mm512_ternarylogic_epi32(magnitude, codes, _mm512_set1_epi8(static_cast<char>(0x80)),
                                  0xF8);  // m | c & sign
    units[0] = _mm512_permutex2var_epi8(low, order_[0], high);
    units[1] = _mm512_permutex2var_epi8(low, order_[1], high);
  }

 private:
  __m512i low_[2], high_[2], order_[2];
};

/// The same of BF16 numbers.
class Bf16Words {
 public:
  static constexpr int kElementBytes = 2, kUnits = 1;

  explicit Bf16Words(Element) {}
  [[gnu::always_inline]] void widen(__m512i pairs, __m512i (&units)[kUnits]) const {
    units[0] = _mm512_rol_epi32(pairs, 16);
  }
};

/// Copies the lines of a turn. Nothing beyond the ends of columns and contraction is read: it becomes zeros.
struct LineSource {
  const std::uint8_t* data;  ///< of the first column
  std::int64_t stride;       ///< bytes from a column to the next
  std::int64_t columns;      ///< that exist
  const std::uint8_t*
      ahead;  ///< fetched into the outer private cache meanwhile, a line for each that is copied

  [[gnu::always_inline]] void copy(std::int64_t byte, std::int64_t bytes, ColumnLines& to) const {
    const auto valid = low_bits<__mmask64>(bytes - byte);
    const std::uint8_t* from = data + byte;
    const std::uint8_t* fetched = ahead + byte * kFewRowsColumns;
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < kFewRowsColumns; ++i, from += stride, fetched += kLineBytes) {
      _mm512_store_si512(to.line[i],
                         i < columns ? _mm512_maskz_loadu_epi8(valid, from) : _mm512_setzero_si512());
      __builtin_prefetch(fetched, 0, 2);
    }
  }
};

constexpr int kFewRowsVectors = kFewRowsColumns / kVector;

template <int Rows>
using FewRowsSums = Vector[Rows][kFewRowsVectors];

/// Adds one piece of all columns, `units` units long, to the sums; `step` is the piece's first unit.
template <class Words, int Rows>
[[gnu::always_inline]] inline void multiply_piece(const Words& words, const ColumnLines& lines, int piece,
                                                  const RowsInTurn<Rows>& rows, std::int64_t step,
                                                  std::int64_t units, FewRowsSums<Rows>& sum) {
#pragma GCC unroll 4
  for (int v = 0; v < kFewRowsVectors; ++v) {
    __m512i of_piece[4];
    load_words(lines.line + v * kVector, piece, of_piece);
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      __m512i of_word[Words::kUnits];
      words.widen(of_piece[w], of_word);
#pragma GCC unroll 2
      for (int u = 0; u < Words::kUnits; ++u) {
        const int unit = w * Words::kUnits + u;
        if (unit >= units) break;
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
          PairDot::apply(sum[r][v], broadcast(rows.unit(r, step + unit)),
                         reinterpret_cast<Vector>(of_word[u]));
      }
    }
  }
}

/// Columns [tile.begin, tile.end), at most kFewRowsColumns.
template <class Words, int Rows>
void multiply_few_rows(const FewRowsTile& tile) {
  constexpr std::int64_t kUnitsOfPiece = 4 * Words::kUnits;
  const Operand& b = tile.columns;
  const std::int64_t stride = b.stride * Words::kElementBytes, bytes = b.contraction * Words::kElementBytes;
  const std::int64_t steps = steps_of(b.element, b.contraction);
  const auto* data = static_cast<const std::uint8_t*>(b.data);
  const LineSource source{data + tile.begin * stride, stride, tile.end - tile.begin,
                          data + tile.ahead * stride};
  const Words words(b.element);
  RowsInTurn<Rows> rows;
  for (int r = 0; r < Rows; ++r) rows.row_begin[r] = tile.rows + r * tile.row_stride;
  FewRowsSums<Rows> sum{};
  ColumnLines lines;
  for (std::int64_t byte = 0; byte < bytes; byte += kLineBytes) {
    source.copy(byte, bytes, lines);
    std::int64_t step = byte / (2 * Words::kElementBytes);
    for (int piece = 0; piece < kPieces && step < steps; ++piece, step += kUnitsOfPiece) {
      if (steps - step >= kUnitsOfPiece) {
        multiply_piece<Words, Rows>(words, lines, piece, rows, step, kUnitsOfPiece, sum);
      } else {  // a further pair of zeros would make a sum of -0 a +0
        multiply_piece<Words, Rows>(words, lines, piece, rows, step, steps - step, sum);
      }
    }
  }
  StoreOutput{tile.out, 0, tile.begin, Rows, tile.end - tile.begin}.finish(sum);
}

/// All rows one after the other, packed_row_stride floats apart.
inline void pack_few_rows(const Operand& rows, float* packed) {
  pack_row_pairs_in_turn(rows, 0, rows.lanes, packed, packed_row_stride(rows));
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
