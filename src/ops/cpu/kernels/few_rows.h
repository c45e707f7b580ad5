/// Products of few rows (AVX-512 with BF16 and VBMI): the columns are read once, transposed, widened and multiplied at once.
/// With a row or two, memory should be the limit and not the arithmetic; what is to be saved are shuffles, of which the
/// processor starts one 512-bit one a cycle.
///
/// The columns lie along the contraction. A turn transposes one cache line of each of 64 columns through the innermost cache,
/// ends of columns and of the contraction as zeros, and multiplies four vectors of 16 columns in turn: the latency of a sum's
/// products is that of several shuffles. Sums are those of gemm.h, in the same order.
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
constexpr std::int64_t kLineBytes = 64;

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

constexpr int kFewRowsVectors = kFewRowsColumns / kVector;

/// A line of each of a tile's columns, transposed: word w of 16 columns in word[w][vector].
struct ColumnWords {
  alignas(64) __m512i word[16][kFewRowsVectors];
};

/// Reads the line that begins at `byte` of `columns` columns, each `bytes` long. Nothing beyond them is read: it counts as
/// zeros.
inline void load_words(const std::uint8_t* data, std::int64_t stride, std::int64_t columns, std::int64_t byte,
                       std::int64_t bytes, ColumnWords& to) {
  const bool whole = bytes - byte >= kLineBytes;
  const std::uint8_t* from = data + byte;
  for (int v = 0; v < kFewRowsVectors; ++v, from += kVector * stride) {
    const std::int64_t left = columns - v * kVector;
    __m512i m[16];
    if (whole && left >= kVector) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) m[i] = _mm512_loadu_si512(from + i * stride);
    } else {
      const auto valid = low_bits<__mmask64>(bytes - byte);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        m[i] = _mm512_maskz_loadu_epi8(i < left ? valid : __mmask64{0}, from + i * stride);
    }
    transpose(m);
#pragma GCC unroll 16
    for (int w = 0; w < 16; ++w) to.word[w][v] = m[w];
  }
}

/// What a tile has on its way into the outer private cache while it multiplies. (Into the innermost one it would not fit beside
/// the line in work.)
///
/// The tile that follows is fetched in the order of its addresses, column after column, which memory serves faster than a line of
/// each column in turn. A tile that none came before fetches its own lines besides, in the order of their use.
class Fetches {
 public:
  /// Lines of its own that a tile fetches before they are multiplied.
  static constexpr std::int64_t kAhead = 3;

  Fetches(const FewRowsTile& tile, int element_bytes)
      : stride_(tile.columns.stride * element_bytes),
        lines_((tile.columns.contraction * element_bytes + kLineBytes - 1) / kLineBytes),
        own_(column(tile, tile.begin)),
        own_columns_(tile.fetched ? 0 : columns_from(tile, tile.begin)),
        next_(column(tile, tile.next)),
        next_columns_(columns_from(tile, tile.next)) {
    for (std::int64_t line = 0; line < lower(kAhead, lines_); ++line) {
      for (std::int64_t c = 0; c < own_columns_; ++c) fetch_own(line, c);
    }
  }

  /// While `line` of column c is multiplied.
  [[gnu::always_inline]] void fetch(std::int64_t line, std::int64_t c) {
    if (next_columns_ > 0) {
      __builtin_prefetch(next_ + line_ * kLineBytes, 0, 2);
      if (++line_ == lines_) {
        line_ = 0;
        next_ += stride_;
        --next_columns_;
      }
    }
    if (c < own_columns_ && line + kAhead < lines_) fetch_own(line + kAhead, c);
  }

 private:
  static std::int64_t columns_from(const FewRowsTile& tile, std::int64_t begin) {
    const std::int64_t left = tile.columns.lanes - begin;
    return left <= 0 ? 0 : lower(left, kFewRowsColumns);
  }
  const std::uint8_t* column(const FewRowsTile& tile, std::int64_t index) const {
    const auto* data = static_cast<const std::uint8_t*>(tile.columns.data);
    return index < tile.columns.lanes ? data + index * stride_ : data;
  }
  void fetch_own(std::int64_t line, std::int64_t c) const {
    __builtin_prefetch(own_ + c * stride_ + line * kLineBytes, 0, 2);
  }

  std::int64_t stride_, lines_;
  const std::uint8_t* own_;
  std::int64_t own_columns_;  ///< 0: they were fetched by the tile before
  const std::uint8_t* next_;
  std::int64_t next_columns_, line_ = 0;  ///< that are left, and the next line of the first of them
};

/// Adds the products of a line, `units` units long at most, to the sums; `step` is its first unit. Lines are asked for one by one
/// meanwhile: all at once, the memory would wait for the arithmetic.
template <class Words, int Rows>
[[gnu::always_inline]] inline void multiply_line(const Words& words, const ColumnWords& line,
                                                 const RowsInTurn<Rows>& rows, std::int64_t step,
                                                 std::int64_t units, std::int64_t index, Fetches& fetches,
                                                 Vector (&sum)[Rows][kFewRowsVectors]) {
  for (int w = 0; w < 16 && w * Words::kUnits < units; ++w) {
    // The second unit of the last word may be none: a further pair of zeros would make a sum of -0 a +0.
    const bool all = (w + 1) * Words::kUnits <= units;
    Vector row[Rows][Words::kUnits];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int u = 0; u < Words::kUnits; ++u)
        row[r][u] = broadcast(rows.unit(r, step + w * Words::kUnits + u));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kFewRowsVectors; ++v) {
      fetches.fetch(index, kFewRowsVectors * w + v);
      __m512i unit[Words::kUnits];
      words.widen(line.word[w][v], unit);
#pragma GCC unroll 2
      for (int u = 0; u < Words::kUnits; ++u) {
        if (u > 0 && !all) break;
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
          PairDot::apply(sum[r][v], row[r][u], reinterpret_cast<Vector>(unit[u]));
      }
    }
  }
}

/// Columns [tile.begin, tile.end), at most kFewRowsColumns.
template <class Words, int Rows>
void multiply_few_rows(const FewRowsTile& tile) {
  constexpr std::int64_t kLineUnits = kLineBytes / (2 * Words::kElementBytes);
  const Operand& b = tile.columns;
  const std::int64_t stride = b.stride * Words::kElementBytes, bytes = b.contraction * Words::kElementBytes;
  const std::int64_t steps = steps_of(b.element, b.contraction), columns = tile.end - tile.begin;
  const auto* data = static_cast<const std::uint8_t*>(b.data) + tile.begin * stride;
  Fetches fetches(tile, Words::kElementBytes);
  const Words words(b.element);
  RowsInTurn<Rows> rows;
  for (int r = 0; r < Rows; ++r) rows.row_begin[r] = tile.rows + r * tile.row_stride;
  Vector sum[Rows][kFewRowsVectors] = {};
  ColumnWords line;
  for (std::int64_t i = 0; i * kLineUnits < steps; ++i) {
    load_words(data, stride, columns, i * kLineBytes, bytes, line);
    multiply_line<Words, Rows>(words, line, rows, i * kLineUnits, steps - i * kLineUnits, i, fetches, sum);
  }
  StoreOutput{tile.out, 0, tile.begin, Rows, columns}.finish(sum);
}

/// All rows one after the other, packed_row_stride floats apart.
inline void pack_few_rows(const Operand& rows, float* packed) {
  pack_row_pairs_in_turn(rows, 0, rows.lanes, packed, packed_row_stride(rows));
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
