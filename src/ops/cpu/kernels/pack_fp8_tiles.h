/// Packing FP8 matrices for tiles (tiles.h).
///
/// Shuffles are what packing costs. Codes are transposed as bytes, a quarter of the units that they become, and widened last: 64 codes
/// are looked up at once, the lower and the upper bytes of their BF16 numbers apart, and both are interleaved. All orders below
/// are such that this gives whole vectors of the packed form. The first step of a pair stands in the lower half of its unit.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/pack_pairs.h"

// g++ 12 takes the deliberately undefined operands inside its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// The codes of a matrix.
class Fp8Lines {
 public:
  explicit Fp8Lines(const Operand& source)
      : data_(static_cast<const std::uint8_t*>(source.data)), stride_(source.stride) {}
  /// Codes [index, index + 64) of `line`, a lane or a step; `left` of them exist, the others are 0.
  __m512i load(std::int64_t line, std::int64_t index, std::int64_t left) const {
    const std::uint8_t* const from = data_ + line * stride_ + index;
    return left >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(low_bits<__mmask64>(left), from);
  }
  /// Sixteen lines are read 64 codes at a time: too many streams, each too short, for the processor to foresee.
  void prefetch(std::int64_t line, std::int64_t index) const {
    __builtin_prefetch(data_ + line * stride_ + index, 0, 2);
  }

 private:
  const std::uint8_t* data_;
  std::int64_t stride_;
};

/// Widens all codes: bytes are looked up among 128.
class AnyCodes : public Fp8Lines {
 public:
  explicit AnyCodes(const Operand& source) : Fp8Lines(source), bytes_(source.element) {}
  Widened widen(__m512i codes) const { return bytes_.widen(codes); }
  static constexpr bool met_special() { return false; }

 private:
  CodeBytes bytes_;
};

/// The bits of a BF16 number's upper byte that a code's sign and two highest bits of exponent flip, as a matrix over GF(2): byte i has the
/// bits of the code that make up bit 7 - i. A larger bias sets the bits between them to the opposite of the highest.
constexpr std::uint64_t kHighFlips[2] = {0x00'20'40'40'40'40'40'80, 0x00'00'20'40'40'40'40'80};

struct FiniteTables {
  alignas(64) std::uint8_t high[2][64];
};
/// Upper bytes before the flips.
constexpr FiniteTables make_finite_tables() {
  FiniteTables tables{};
  for (int format = 0; format < 2; ++format) {
    for (int code = 0; code < 64; ++code) {
      int flips = 0;
      for (int i = 0; i < 8; ++i) flips |= (kHighFlips[format] >> (8 * i) & code) != 0 ? 0x80 >> i : 0;
      tables.high[format][code] = static_cast<std::uint8_t>(kPairTables.high[format][code] ^ flips);
    }
  }
  return tables;
}
constexpr FiniteTables kFiniteTables = make_finite_tables();

/// Widens finite codes, and tells whether others were among them. Among 64 entries a look-up is one shuffle, not two: what the
/// highest bit of the exponent does to the upper byte is the same for all normal numbers, so codes with that bit share the
/// entries of those with the next one, which are normal too.
class FiniteCodes : public Fp8Lines {
 public:
  explicit FiniteCodes(const Operand& source) : Fp8Lines(source) {
    const int format = source.element == Element::e4m3 ? 0 : 1;
    low_ = _mm512_load_si512(kPairTables.low[format]);
    high_ = _mm512_load_si512(kFiniteTables.high[format]);
    flips_ = _mm512_set1_epi64(static_cast<long long>(kHighFlips[format]));
    first_special_ = format == 0 ? 0x7F : 0x7C;
  }
  Widened widen(__m512i codes) {
    constexpr int kOrOfAnd = 0xF8;
    largest_ = _mm512_max_epu8(largest_, _mm512_add_epi8(codes, codes));
    const __m512i entry =
        _mm512_ternarylogic_epi32(codes, _mm512_srli_epi16(codes, 1), _mm512_set1_epi8(0x20), kOrOfAnd);
    const __m512i low = _mm512_permutexvar_epi8(entry, low_);
    const __m512i high = _mm512_xor_si512(_mm512_permutexvar_epi8(entry, high_),
                                          _mm512_gf2p8affine_epi64_epi8(codes, flips_, 0));
    return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  }
  bool met_special() const {
    return _mm512_cmpge_epu8_mask(largest_, _mm512_set1_epi8(static_cast<char>(2 * first_special_))) != 0;
  }

 private:
  __m512i low_, high_, flips_, largest_ = _mm512_setzero_si512();
  int first_special_;
};

/// Rows that lie along the contraction.
template <class Codes>
void pack_fp8_rows_along(Codes& codes, const Operand& source, std::int64_t begin, std::int64_t end,
                         float* packed, std::int64_t stride) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const std::int64_t whole = source.contraction / 64 * 64, rest = source.contraction - whole;
  const auto widen = [&](std::int64_t lane, std::int64_t k, std::int64_t left) {
    return codes.widen(_mm512_permutexvar_epi64(order, codes.load(lane, k, left)));
  };
  for (std::int64_t lane = begin; lane < end; ++lane, packed += stride) {
    for (std::int64_t k = 0; k < whole; k += 64) {
      const Widened units = widen(lane, k, 64);
      _mm512_store_si512(packed + k / 2, units.first);
      _mm512_store_si512(packed + k / 2 + kTileSteps, units.last);
    }
    if (rest == 0) continue;
    const Widened units = widen(lane, whole, rest);
    _mm512_store_si512(packed + whole / 2, units.first);
    if (rest > 32) _mm512_store_si512(packed + whole / 2 + kTileSteps, units.last);
  }
}

/// Eight lines, of each eight codes of one lane: of every 128 bits of the lines, result i has lanes 2 i and 2 i + 1.
[[gnu::always_inline]] inline void transpose_octet(const __m512i (&steps)[8], __m512i (&lanes)[8]) {
  __m512i pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm512_unpacklo_epi8(steps[2 * i], steps[2 * i + 1]);
    pairs[4 + i] = _mm512_unpackhi_epi8(steps[2 * i], steps[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512i a = pairs[4 * half + 2 * i], b = pairs[4 * half + 2 * i + 1];
      quads[4 * half + i] = _mm512_unpacklo_epi16(a, b);
      quads[4 * half + 2 + i] = _mm512_unpackhi_epi16(a, b);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    lanes[2 * i] = _mm512_unpacklo_epi32(quads[2 * i], quads[2 * i + 1]);
    lanes[2 * i + 1] = _mm512_unpackhi_epi32(quads[2 * i], quads[2 * i + 1]);
  }
}

/// Rows that lie across it: 32 steps of 64 rows at a time.
template <class Codes>
void pack_fp8_rows_across(Codes& codes, const Operand& source, std::int64_t begin, std::int64_t end,
                          float* packed, std::int64_t stride) {
  for (std::int64_t k = 0; k < source.contraction; k += 32) {
    for (std::int64_t lane = begin; lane < end; lane += 64) {
      const std::int64_t count = end - lane;
      __m512i octets[4][8];
      for (int octet = 0; octet < 4; ++octet) {
        __m512i steps[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const std::int64_t step = k + 8 * octet + i;
          steps[i] = step < source.contraction ? codes.load(step, lane, count) : _mm512_setzero_si512();
        }
        transpose_octet(steps, octets[octet]);
      }
      float* const to = packed + (lane - begin) * stride + k / 2;
      for (int i = 0; i < 8; ++i) {
        __m512i rows[4];  // 16 quarter + 2 i, and the next
        transpose_quarters(rows, octets[0][i], octets[1][i], octets[2][i], octets[3][i]);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
          const std::int64_t row = 16 * quarter + 2 * i;
          const Widened units = codes.widen(rows[quarter]);
          if (row < count) _mm512_store_si512(to + row * stride, units.first);
          if (row + 1 < count) _mm512_store_si512(to + (row + 1) * stride, units.last);
        }
      }
    }
  }
}

/// Sixteen lanes that lie along the contraction, as a vector of columns.
template <class Codes>
void pack_fp8_vector_along(Codes& codes, std::int64_t lane, std::int64_t lanes, std::int64_t contraction,
                           const ColumnSink& sink) {
  for (std::int64_t k = 0; k < contraction; k += 64) {
    const std::int64_t left = contraction - k;
    __m512i quads[4][4];  // pairs 8 q + 2 m and 8 q + 2 m + 1 of four lanes, in 128 bits number q
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m512i rows[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int row = 4 * g + i;
        rows[i] = row < lanes ? codes.load(lane + row, k, left) : _mm512_setzero_si512();
        codes.prefetch(lane + row + 16, k);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i a =
            half == 0 ? _mm512_unpacklo_epi16(rows[0], rows[1]) : _mm512_unpackhi_epi16(rows[0], rows[1]);
        const __m512i b =
            half == 0 ? _mm512_unpacklo_epi16(rows[2], rows[3]) : _mm512_unpackhi_epi16(rows[2], rows[3]);
        quads[g][2 * half] = _mm512_unpacklo_epi32(a, b);
        quads[g][2 * half + 1] = _mm512_unpackhi_epi32(a, b);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      __m512i pairs[4];
      transpose_quarters(pairs, quads[0][m], quads[1][m], quads[2][m], quads[3][m]);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        if (q >= 2 && left <= 32) break;
        const std::int64_t pair = k / 64 * 32 + 8 * q + 2 * m;  // the compiler sees the multiple
        const Widened units = codes.widen(pairs[q]);
        sink.put(0, pair, units.first);
        sink.put(0, pair + 1, units.last);
      }
    }
  }
}

/// Up to 64 lanes that lie across it, as `vectors` vectors of columns.
template <class Codes>
void pack_fp8_vectors_across(Codes& codes, std::int64_t lane, std::int64_t lanes, std::int64_t contraction,
                             int vectors, const ColumnSink (&sinks)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto step = [&](std::int64_t k) {
    return k < contraction ? _mm512_permutexvar_epi32(order, codes.load(k, lane, lanes))
                           : _mm512_setzero_si512();
  };
  for (std::int64_t pair = 0; pair < pair_steps_of(contraction); ++pair) {
    const __m512i even = step(2 * pair), odd = step(2 * pair + 1);
    const Widened left = codes.widen(_mm512_unpacklo_epi8(even, odd));
    sinks[0].put(0, pair, left.first);
    if (vectors > 1) sinks[1].put(0, pair, left.last);
    if (vectors <= 2) continue;
    const Widened right = codes.widen(_mm512_unpackhi_epi8(even, odd));
    sinks[2].put(0, pair, right.first);
    if (vectors > 3) sinks[3].put(0, pair, right.last);
  }
}

/// True if all is packed.
template <class Codes>
bool pack_fp8_rows(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                   std::int64_t stride) {
  Codes codes(source);
  source.along_contraction ? pack_fp8_rows_along(codes, source, begin, end, packed, stride)
                           : pack_fp8_rows_across(codes, source, begin, end, packed, stride);
  return !codes.met_special();
}

template <class Codes>
bool pack_fp8_columns(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  static_assert(kMaxVectors == 2);
  Codes codes(source);
  const std::int64_t steps = pair_steps_of(source.contraction), vectors = (end - begin + 15) / kVector;
  const auto sink =
      [&](std::int64_t vector) {  // panels are two vectors wide, but for the last of an odd number
        const std::int64_t first = vector / 2 * 2, width = first + 1 < vectors ? kPanelColumns : kVector;
        return ColumnSink{packed + first * kVector * steps, width, vector - first};
      };
  const std::int64_t at_once = source.along_contraction ? 1 : 4;
  for (std::int64_t v = 0; v < vectors; v += at_once) {
    const std::int64_t lane = begin + v * kVector;
    if (source.along_contraction) {
      pack_fp8_vector_along(codes, lane, end - lane, source.contraction, sink(v));
    } else {
      const ColumnSink sinks[4] = {sink(v), sink(v + 1), sink(v + 2), sink(v + 3)};
      pack_fp8_vectors_across(codes, lane, end - lane, source.contraction,
                              static_cast<int>(lower(at_once, vectors - v)), sinks);
    }
  }
  return !codes.met_special();
}

void pack_fp8_rows(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                   std::int64_t stride) {
  if (!pack_fp8_rows<FiniteCodes>(source, begin, end, packed, stride))
    pack_fp8_rows<AnyCodes>(source, begin, end, packed, stride);
}

void pack_fp8_columns(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  if (!pack_fp8_columns<FiniteCodes>(source, begin, end, packed))
    pack_fp8_columns<AnyCodes>(source, begin, end, packed);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
