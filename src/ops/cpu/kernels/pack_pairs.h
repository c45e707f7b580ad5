/// Packing BF16 and FP8 matrices into pairs of BF16 numbers for the dot-product instruction (AVX-512 with
/// BF16 and VBMI).
///
/// The contraction runs in pairs of steps, the first of a pair in the upper half of its unit (gemm.h); an odd
/// contraction ends with a zero. For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <immintrin.h>

#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/microkernel.h"

// g++ 12 takes the deliberately undefined operands inside its own intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

struct PairTables {
  alignas(64) std::uint8_t low[2][128],
      high[2][128];  // bytes of the BF16 number of a code without its sign: e4m3, e5m2
};

constexpr PairTables make_pair_tables() {
  PairTables tables{};
  for (int format = 0; format < 2; ++format) {
    const int mantissa = 3 - format, bias = format == 0 ? 7 : 15;
    for (int code = 0; code < 128; ++code) {
      int exponent = code >> mantissa, fraction = code & ((1 << mantissa) - 1);
      const bool special = format == 0 ? code == 127 : exponent == 31;
      if (exponent == 0) {
        for (exponent = 1; fraction != 0 && fraction < (1 << mantissa); --exponent) fraction *= 2;
        fraction &= (1 << mantissa) - 1;
      }
      int bits = (exponent + 127 - bias) << 7 | fraction << (7 - mantissa);
      if (code == 0) bits = 0;
      if (special) bits = format == 1 && fraction == 0 ? 0x7F80 : 0x7FC0;
      tables.low[format][code] = static_cast<std::uint8_t>(bits);
      tables.high[format][code] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
  return tables;
}

constexpr PairTables kPairTables = make_pair_tables();

/// Byte indices: position p of the result comes from code `order(p / 2)`.
struct ByteOrder {
  alignas(64) std::uint8_t index[64];
};
/// 32 codes of one lane: pairs swapped.
constexpr ByteOrder make_along_order() {
  ByteOrder order{};
  for (int p = 0; p < 64; ++p) order.index[p] = static_cast<std::uint8_t>((p / 2) ^ 1);
  return order;
}
/// Four codes of each of 16 lanes: the first pair of steps of every lane, or the second.
constexpr ByteOrder make_quad_order(int pair) {
  ByteOrder order{};
  for (int p = 0; p < 64; ++p)
    order.index[p] = static_cast<std::uint8_t>(p / 4 * 4 + 2 * pair + (p & 2 ? 0 : 1));
  return order;
}
/// 64 lanes of two steps, the second step in bytes 0-63 and the first in bytes 64-127: the pairs of lanes
/// [16 part, 16 part + 16).
constexpr ByteOrder make_across_order(int part) {
  ByteOrder order{};
  for (int p = 0; p < 64; ++p)
    order.index[p] = static_cast<std::uint8_t>(16 * part + p / 4 + (p & 2 ? 64 : 0));
  return order;
}
constexpr ByteOrder kAlongOrder = make_along_order();
constexpr ByteOrder kQuadOrder[] = {make_quad_order(0), make_quad_order(1)};
constexpr ByteOrder kAcrossOrder[] = {make_across_order(0), make_across_order(1), make_across_order(2),
                                      make_across_order(3)};

/// The lowest `count` of `Mask`'s bits.
template <typename Mask>
Mask low_bits(std::int64_t count) {
  constexpr std::int64_t kBits = 8 * sizeof(Mask);
  if (count >= kBits) return static_cast<Mask>(~Mask{0});
  return count <= 0 ? Mask{0} : static_cast<Mask>((Mask{1} << count) - 1);
}

constexpr int kMaxAcross = 4;  ///< vectors of 16 lanes that one call of `across` loads

/// The BF16 numbers of 64 codes: of every 128 bits of codes the first eight, and the last.
struct Widened {
  __m512i first, last;
};

/// Looks up the bytes of the BF16 numbers of FP8 codes, whose signs count for nothing.
class CodeBytes {
 public:
  explicit CodeBytes(Element element) {
    const int format = element == Element::e4m3 ? 0 : 1;
    for (int half = 0; half < 2; ++half) {
      low_[half] = _mm512_load_si512(kPairTables.low[format] + 64 * half);
      high_[half] = _mm512_load_si512(kPairTables.high[format] + 64 * half);
    }
  }
  [[gnu::always_inline]] __m512i low(__m512i codes) const {
    return _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
  }
  [[gnu::always_inline]] __m512i high(__m512i codes) const {
    return _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
  }
  /// With their signs.
  [[gnu::always_inline]] Widened widen(__m512i codes) const {
    const __m512i lower_bytes = low(codes);
    const __m512i upper_bytes =
        _mm512_ternarylogic_epi32(high(codes), codes, _mm512_set1_epi8(static_cast<char>(0x80)),
                                  0xF8);  // m | c & sign
    return {_mm512_unpacklo_epi8(lower_bytes, upper_bytes), _mm512_unpackhi_epi8(lower_bytes, upper_bytes)};
  }

 private:
  __m512i low_[2], high_[2];
};

/// Loads FP8 codes as pairs of BF16 numbers.
class Fp8Pairs {
 public:
  explicit Fp8Pairs(const Operand& source)
      : data_(static_cast<const std::uint8_t*>(source.data)),
        stride_(source.stride),
        bytes_(source.element) {}
  /// 16 pairs of steps, from step k, of one lane; `valid` of the 32 steps exist.
  __m512i along(std::int64_t lane, std::int64_t k, __mmask32 valid) const {
    const __m256i codes = _mm256_maskz_loadu_epi8(valid, data_ + lane * stride_ + k);
    return widen(
        _mm512_permutexvar_epi8(_mm512_load_si512(kAlongOrder.index), _mm512_castsi256_si512(codes)));
  }
  /// 16 steps, from step k, of one lane as FP32 numbers; `valid` of them exist.
  __m512i numbers(std::int64_t lane, std::int64_t k, __mmask16 valid) const {
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, data_ + lane * stride_ + k));
    return widen(_mm512_or_si512(_mm512_slli_epi32(codes, 16), _mm512_slli_epi32(codes, 24)));
  }
  /// For transposing: 16 groups of kPairsOfGroup pairs of steps of one lane, from step k; `left` steps exist.
  static constexpr int kPairsOfGroup = 2;
  __m512i groups(std::int64_t lane, std::int64_t k, std::int64_t left) const {
    return _mm512_maskz_loadu_epi8(low_bits<__mmask64>(left), data_ + lane * stride_ + k);
  }
  /// Sixteen rows are read a cache line at a time: too many streams, each too short, for the processor to foresee.
  void prefetch(std::int64_t lane, std::int64_t line) const {
    __builtin_prefetch(reinterpret_cast<const char*>(data_ + lane * stride_) + 64 * line, 0, 2);
  }
  /// One of the pairs of a group of 16 lanes.
  __m512i pair_of(__m512i group, int pair) const {
    return widen(_mm512_permutexvar_epi8(_mm512_load_si512(kQuadOrder[pair].index), group));
  }
  /// Steps k and k + 1 (if `second`) of 16 * Vectors lanes, of which `lanes` exist.
  template <int Vectors>
  void across(std::int64_t lane, std::int64_t lanes, std::int64_t k, bool second,
              __m512i (&units)[Vectors]) const {
    const std::uint8_t* from = data_ + k * stride_ + lane;
    const auto valid = low_bits<__mmask64>(lanes);
    const __m512i first_codes = _mm512_maskz_loadu_epi8(valid, from);
    const __m512i second_codes = _mm512_maskz_loadu_epi8(second ? valid : __mmask64{0}, from + stride_);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const __m512i order = _mm512_load_si512(kAcrossOrder[v].index);
      units[v] = widen(_mm512_permutex2var_epi8(second_codes, order, first_codes));
    }
  }

 private:
  /// Codes that stand twice each, as BF16 numbers.
  __m512i widen(__m512i c) const {
    const __m512i magnitude = _mm512_mask_mov_epi8(bytes_.low(c), 0xAAAAAAAAAAAAAAAAull, bytes_.high(c));
    return _mm512_ternarylogic_epi32(magnitude, c, _mm512_set1_epi16(static_cast<short>(0x8000)),
                                     0xF8);  // m | c & sign
  }

  const std::uint8_t* data_;
  std::int64_t stride_;
  CodeBytes bytes_;
};

/// The same for BF16 numbers.
class Bf16Pairs {
 public:
  explicit Bf16Pairs(const Operand& source)
      : data_(static_cast<const std::uint16_t*>(source.data)), stride_(source.stride) {}
  __m512i along(std::int64_t lane, std::int64_t k, __mmask32 valid) const {
    return _mm512_rol_epi32(_mm512_maskz_loadu_epi16(valid, data_ + lane * stride_ + k), 16);
  }
  static constexpr int kPairsOfGroup = 1;
  __m512i groups(std::int64_t lane, std::int64_t k, std::int64_t left) const {
    return along(lane, k, low_bits<__mmask32>(left));
  }
  void prefetch(std::int64_t lane, std::int64_t line) const {
    __builtin_prefetch(reinterpret_cast<const char*>(data_ + lane * stride_) + 64 * line, 0, 2);
  }
  __m512i pair_of(__m512i group, int) const { return group; }
  /// Two lines from `lane` on: those of the most vectors that `across` loads, but for a misaligned end.
  void prefetch_across(std::int64_t lane, std::int64_t k) const {
    const auto* from = reinterpret_cast<const char*>(data_ + k * stride_ + lane);
    __builtin_prefetch(from, 0, 3);
    __builtin_prefetch(from + 64, 0, 3);
  }
  template <int Vectors>
  void across(std::int64_t lane, std::int64_t lanes, std::int64_t k, bool second,
              __m512i (&units)[Vectors]) const {
    const std::uint16_t* from = data_ + k * stride_ + lane;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const auto valid = low_bits<__mmask16>(lanes - 16 * v);
      const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, from + 16 * v));
      const __m512i lower_half = _mm512_cvtepu16_epi32(
          _mm256_maskz_loadu_epi16(second ? valid : __mmask16{0}, from + stride_ + 16 * v));
      units[v] = _mm512_or_si512(_mm512_slli_epi32(upper, 16), lower_half);
    }
  }

 private:
  const std::uint16_t* data_;
  std::int64_t stride_;
};

/// to[i] has, of every vector, its 128 bits number i.
[[gnu::always_inline]] inline void transpose_quarters(__m512i (&to)[4], __m512i a, __m512i b, __m512i c,
                                                      __m512i d) {
  const __m512i lower_ab = _mm512_shuffle_i32x4(a, b, 0x44), lower_cd = _mm512_shuffle_i32x4(c, d, 0x44);
  const __m512i upper_ab = _mm512_shuffle_i32x4(a, b, 0xEE), upper_cd = _mm512_shuffle_i32x4(c, d, 0xEE);
  to[0] = _mm512_shuffle_i32x4(lower_ab, lower_cd, 0x88);
  to[1] = _mm512_shuffle_i32x4(lower_ab, lower_cd, 0xDD);
  to[2] = _mm512_shuffle_i32x4(upper_ab, upper_cd, 0x88);
  to[3] = _mm512_shuffle_i32x4(upper_ab, upper_cd, 0xDD);
}

/// Transposes a 16 x 16 matrix of 32-bit units.
__attribute__((always_inline)) inline void transpose(__m512i (&m)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512i quarters[4];
    transpose_quarters(quarters, m[i], m[i + 4], m[i + 8], m[i + 12]);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) m[i + 4 * q] = quarters[q];
  }
}

/// Steps [k, k_end), k even, of up to 16 lanes from `lane`, which lie along the contraction: calls sink.put(0,
/// pair, units of 16 lanes).
template <class Pairs, class Sink>
void pack_along(const Pairs& pairs, std::int64_t lane, std::int64_t lanes, std::int64_t k, std::int64_t k_end,
                const Sink& sink) {
  constexpr std::int64_t kGroup = Pairs::kPairsOfGroup, kSteps = 2 * 16 * kGroup;
  const std::int64_t first = k;
  for (; k < k_end; k += kSteps) {
    const std::int64_t left = k_end - k;
    __m512i groups[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      groups[i] = i < lanes ? pairs.groups(lane + i, k, left) : _mm512_setzero_si512();
      pairs.prefetch(lane + 16, (k - first) / kSteps * 16 + i);
    }
    transpose(groups);
    const auto put = [&](int i) {
      const std::int64_t pair = k / 32 * 16 + i;  // the compiler sees the multiple
      sink.put(0, pair, pairs.pair_of(groups[i / kGroup], static_cast<int>(i % kGroup)));
    };
    if (left >= kSteps) {
#pragma GCC unroll 32
      for (int i = 0; i < 16 * kGroup; ++i) put(i);
    } else {
      for (int i = 0; 2 * i < left; ++i) put(i);
    }
  }
}

/// The same for up to 16 * Vectors lanes that lie across the contraction: calls sink.put(vector, pair, units).
template <int Vectors, class Pairs, class Sink>
void pack_across(const Pairs& pairs, std::int64_t lane, std::int64_t lanes, std::int64_t k,
                 std::int64_t k_end, const Sink& sink) {
  for (; k < k_end; k += 2) {
    __m512i units[Vectors];
    pairs.across(lane, lanes, k, k + 1 < k_end, units);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sink.put(v, k / 2, units[v]);
  }
}

template <class Pairs, class Sink>
void pack_across(int vectors, const Pairs& pairs, std::int64_t lane, std::int64_t lanes, std::int64_t k,
                 std::int64_t k_end, const Sink& sink) {
  static_assert(kMaxAcross == 4);
  if (vectors == 1) return pack_across<1>(pairs, lane, lanes, k, k_end, sink);
  if (vectors == 2) return pack_across<2>(pairs, lane, lanes, k, k_end, sink);
  if (vectors == 3) return pack_across<3>(pairs, lane, lanes, k, k_end, sink);
  pack_across<4>(pairs, lane, lanes, k, k_end, sink);
}

/// Where one vector of a panel of `width` columns has its units of a pair of steps: beside the other vectors of the pair or, with
/// tiles, in its tile of kStepMultiple pairs, which stands beside the other tiles.
constexpr std::int64_t column_unit(std::int64_t width, std::int64_t vector, std::int64_t pair) {
  const std::int64_t within = pair & (kStepMultiple - 1);
  return (pair - within) * width + (vector * kStepMultiple + within) * kVector;
}

/// A panel of columns, from one of its vectors on.
struct ColumnSink {
  float* panel;
  std::int64_t width;
  std::int64_t first_vector = 0;
  void put(int vector, std::int64_t pair, __m512i units) const {
    _mm512_store_si512(panel + column_unit(width, first_vector + vector, pair), units);
  }
};

/// Panels of eight rows side by side, `rows` rows in all.
struct RowSink {
  float* to;
  std::int64_t panel_units;
  std::int64_t rows;
  void put(int vector, std::int64_t pair, __m512i units) const {
    float* first = to + 2 * vector * panel_units + pair * kRows;
    _mm256_store_si256(reinterpret_cast<__m256i*>(first), _mm512_castsi512_si256(units));
    if (rows > 16 * vector + kRows) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(first + panel_units),
                         _mm512_extracti64x4_epi64(units, 1));
    }
  }
};

/// Even. Lanes across the contraction share cache lines with their neighbours: so many steps of all lanes fit in
/// the outer private cache.
constexpr std::int64_t kPackPairSteps = 4096;

/// Rows one after the other, `stride` floats apart; the end of a row is zeros up to a whole vector. The rows lie across the
/// contraction: 16 pairs of steps of 64 of them are read, and transposed 16 by 16.
template <class Pairs>
void pack_row_pairs_across(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                           std::int64_t stride) {
  const Pairs pairs(source);
  for (std::int64_t k = 0; k < source.contraction; k += 32) {
    const std::int64_t left = source.contraction - k;
    for (std::int64_t lane = begin; lane < end; lane += kMaxAcross * kVector) {
      __m512i units[16][kMaxAcross];
      for (int i = 0; i < 16; ++i) {
        if (2 * i < left) {
          pairs.across(lane, end - lane, k + 2 * i, 2 * i + 1 < left, units[i]);
        } else {
          for (__m512i& none : units[i]) none = _mm512_setzero_si512();
        }
      }
      for (int v = 0; v < kMaxAcross && lane + v * kVector < end; ++v) {
        __m512i rows[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = units[i][v];
        transpose(rows);
        float* const to = packed + (lane + v * kVector - begin) * stride + k / 2;
        const std::int64_t count = end - lane - v * kVector;
        if (count >= 16) {
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * stride, rows[i]);
        } else {
          for (int i = 0; i < count; ++i) _mm512_store_si512(to + i * stride, rows[i]);
        }
      }
    }
  }
}

/// The same of rows that lie along it.
template <class Pairs>
void pack_row_pairs_along(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                          std::int64_t stride) {
  const Pairs pairs(source);
  const std::int64_t whole = source.contraction / 32 * 32;
  const auto rest = low_bits<__mmask32>(source.contraction - whole);
  for (std::int64_t lane = begin; lane < end; ++lane, packed += stride) {
    for (std::int64_t k = 0; k < whole; k += 32) {
      _mm512_store_si512(packed + k / 2, pairs.along(lane, k, ~__mmask32{0}));
    }
    if (rest != 0) _mm512_store_si512(packed + whole / 2, pairs.along(lane, whole, rest));
  }
}

template <class Pairs>
void pack_row_pairs_in_turn(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                            std::int64_t stride) {
  source.along_contraction ? pack_row_pairs_along<Pairs>(source, begin, end, packed, stride)
                           : pack_row_pairs_across<Pairs>(source, begin, end, packed, stride);
}

template <class Pairs>
void pack_row_pairs_side_by_side(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  static_assert(kRows == 8 || kStepMultiple > 1);
  const Pairs pairs(source);
  const std::int64_t steps = (source.contraction + 1) / 2;
  for (std::int64_t k = 0; k < source.contraction; k += kPackPairSteps) {
    const std::int64_t k_end =
        k + kPackPairSteps < source.contraction ? k + kPackPairSteps : source.contraction;
    for (std::int64_t lane = begin; lane < end; lane += kMaxAcross * kVector) {
      const std::int64_t lanes = end - lane;
      const int vectors = lanes >= kMaxAcross * kVector ? kMaxAcross : static_cast<int>((lanes + 15) / 16);
      pack_across(vectors, pairs, lane, lanes, k, k_end,
                  RowSink{packed + (lane - begin) * steps, kRows * steps, lanes});
    }
  }
}

/// What a panel of `width` columns has beyond the contraction.
inline void clear_last_steps(float* panel, std::int64_t width, std::int64_t contraction) {
  for (std::int64_t pair = (contraction + 1) / 2; pair < pair_steps_of(contraction); ++pair) {
    for (std::int64_t v = 0; v * kVector < width; ++v)
      _mm512_store_si512(panel + column_unit(width, v, pair), _mm512_setzero_si512());
  }
}

template <class Pairs>
void pack_column_pairs(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  static_assert(kVector == 16);
  const Pairs pairs(source);
  const std::int64_t steps = pair_steps_of(source.contraction);
  for_column_panels(end - begin, [&](std::int64_t column, int vectors) {
    clear_last_steps(packed + column * steps, vectors * kVector, source.contraction);
  });
  for (std::int64_t k = 0; k < source.contraction; k += kPackPairSteps) {
    const std::int64_t k_end =
        k + kPackPairSteps < source.contraction ? k + kPackPairSteps : source.contraction;
    for_column_panels(end - begin, [&](std::int64_t column, int vectors) {
      const std::int64_t lane = begin + column, width = vectors * kVector;
      if (!source.along_contraction) {
        return pack_across(vectors, pairs, lane, end - lane, k, k_end,
                           ColumnSink{packed + column * steps, width});
      }
      for (std::int64_t v = 0; v < vectors; ++v) {
        const std::int64_t first = lane + v * kVector;
        pack_along(pairs, first, end - first, k, k_end, ColumnSink{packed + column * steps, width, v});
      }
    });
  }
}

void pack_row_pairs_in_turn(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                            std::int64_t stride) {
  if (source.element == Element::bf16) {
    return pack_row_pairs_in_turn<Bf16Pairs>(source, begin, end, packed, stride);
  }
  pack_row_pairs_in_turn<Fp8Pairs>(source, begin, end, packed, stride);
}

void pack_row_pairs_side_by_side(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  if (source.element == Element::bf16) {
    return pack_row_pairs_side_by_side<Bf16Pairs>(source, begin, end, packed);
  }
  pack_row_pairs_side_by_side<Fp8Pairs>(source, begin, end, packed);
}

void pack_column_pairs(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  if (source.element == Element::bf16) return pack_column_pairs<Bf16Pairs>(source, begin, end, packed);
  return pack_column_pairs<Fp8Pairs>(source, begin, end, packed);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#pragma GCC diagnostic pop
