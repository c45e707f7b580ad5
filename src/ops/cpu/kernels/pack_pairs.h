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
/// 16 lanes of two steps, the second step in bytes 0-15 and the first in bytes 16-31.
constexpr ByteOrder make_across_order() {
  ByteOrder order{};
  for (int p = 0; p < 64; ++p) order.index[p] = static_cast<std::uint8_t>(p / 4 + (p & 2 ? 16 : 0));
  return order;
}
constexpr ByteOrder kAlongOrder = make_along_order();
constexpr ByteOrder kAcrossOrder = make_across_order();

/// Loads FP8 codes as pairs of BF16 numbers.
class Fp8Pairs {
 public:
  explicit Fp8Pairs(const Operand& source)
      : data_(static_cast<const std::uint8_t*>(source.data)), stride_(source.stride) {
    const int format = source.element == Element::e4m3 ? 0 : 1;
    for (int half = 0; half < 2; ++half) {
      low_[half] = _mm512_load_si512(kPairTables.low[format] + 64 * half);
      high_[half] = _mm512_load_si512(kPairTables.high[format] + 64 * half);
    }
  }
  /// 16 pairs of steps, from step k, of one lane; `valid` of the 32 steps exist.
  __m512i along(std::int64_t lane, std::int64_t k, __mmask32 valid) const {
    const __m256i codes = _mm256_maskz_loadu_epi8(valid, data_ + lane * stride_ + k);
    return widen(_mm512_castsi256_si512(codes), _mm512_load_si512(kAlongOrder.index));
  }
  /// Steps k and k + 1 (if `second`) of 16 lanes; `valid` of the lanes exist.
  __m512i across(std::int64_t lane, std::int64_t k, __mmask16 valid, bool second) const {
    const std::uint8_t* from = data_ + k * stride_ + lane;
    const __m128i first_codes = _mm_maskz_loadu_epi8(valid, from);
    const __m128i second_codes = _mm_maskz_loadu_epi8(second ? valid : __mmask16{0}, from + stride_);
    return widen(_mm512_castsi256_si512(_mm256_set_m128i(first_codes, second_codes)),
                 _mm512_load_si512(kAcrossOrder.index));
  }

 private:
  __m512i widen(__m512i codes, __m512i order) const {
    const __m512i c = _mm512_permutexvar_epi8(order, codes);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], c, low_[1]);
    const __m512i high = _mm512_permutex2var_epi8(high_[0], c, high_[1]);
    const __m512i magnitude = _mm512_mask_mov_epi8(low, 0xAAAAAAAAAAAAAAAAull, high);
    return _mm512_ternarylogic_epi32(magnitude, c, _mm512_set1_epi16(static_cast<short>(0x8000)),
                                     0xF8);  // m | c & sign
  }

  const std::uint8_t* data_;
  std::int64_t stride_;
  __m512i low_[2], high_[2];
};

/// The same for BF16 numbers.
class Bf16Pairs {
 public:
  explicit Bf16Pairs(const Operand& source)
      : data_(static_cast<const std::uint16_t*>(source.data)), stride_(source.stride) {}
  __m512i along(std::int64_t lane, std::int64_t k, __mmask32 valid) const {
    return _mm512_rol_epi32(_mm512_maskz_loadu_epi16(valid, data_ + lane * stride_ + k), 16);
  }
  __m512i across(std::int64_t lane, std::int64_t k, __mmask16 valid, bool second) const {
    const std::uint16_t* from = data_ + k * stride_ + lane;
    const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, from));
    const __m512i lower_half =
        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second ? valid : __mmask16{0}, from + stride_));
    return _mm512_or_si512(_mm512_slli_epi32(upper, 16), lower_half);
  }

 private:
  const std::uint16_t* data_;
  std::int64_t stride_;
};

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
    t[i] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    m[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    m[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

/// Steps [k, k_end), k even, of up to 16 lanes from `lane`: calls sink.put(pair, units of 16 lanes).
template <class Pairs, class Sink>
void pack_sixteen(const Pairs& pairs, const Operand& source, std::int64_t lane, std::int64_t lanes,
                  std::int64_t k, std::int64_t k_end, const Sink& sink) {
  if (source.along_contraction) {
    for (; k < k_end; k += 32) {
      const std::int64_t left = k_end - k;
      const __mmask32 valid = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      __m512i units[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        units[i] = i < lanes ? pairs.along(lane + i, k, valid) : _mm512_setzero_si512();
      transpose(units);
      if (left >= 32) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sink.put(k / 2 + i, units[i]);
      } else {
        for (int i = 0; 2 * i < left; ++i) sink.put(k / 2 + i, units[i]);
      }
    }
  } else {
    const __mmask16 valid = static_cast<__mmask16>(lanes >= 16 ? 0xFFFF : (1 << lanes) - 1);
    for (; k < k_end; k += 2) sink.put(k / 2, pairs.across(lane, k, valid, k + 1 < k_end));
  }
}

/// Sixteen lanes of a column panel.
struct ColumnSink {
  float* to;
  std::int64_t width;
  void put(std::int64_t pair, __m512i units) const { _mm512_store_si512(to + pair * width, units); }
};

/// Two row panels of eight, or one.
struct RowSink {
  float* first;
  float* second;  // may be null
  void put(std::int64_t pair, __m512i units) const {
    _mm256_store_si256(reinterpret_cast<__m256i*>(first + pair * kRows), _mm512_castsi512_si256(units));
    if (second) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(second + pair * kRows),
                         _mm512_extracti64x4_epi64(units, 1));
    }
  }
};

constexpr std::int64_t kPackPairSteps = 512;  // even; see kPackSteps

/// Rows one after the other, `stride` floats apart; the end of a row is zeros up to a whole vector.
template <class Pairs>
void pack_row_pairs_in_turn(const Operand& source, std::int64_t begin, std::int64_t end, float* packed,
                            std::int64_t stride) {
  const Pairs pairs(source);
  const std::int64_t whole = source.contraction / 32 * 32;
  const __mmask32 rest = (__mmask32{1} << (source.contraction - whole)) - 1;
  for (std::int64_t lane = begin; lane < end; ++lane, packed += stride) {
    for (std::int64_t k = 0; k < whole; k += 32) {
      _mm512_store_si512(packed + k / 2, pairs.along(lane, k, ~__mmask32{0}));
    }
    if (rest != 0) _mm512_store_si512(packed + whole / 2, pairs.along(lane, whole, rest));
  }
}

template <class Pairs>
void pack_row_pairs_side_by_side(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  static_assert(kRows == 8);
  const Pairs pairs(source);
  const std::int64_t steps = (source.contraction + 1) / 2;
  for (std::int64_t k = 0; k < source.contraction; k += kPackPairSteps) {
    const std::int64_t k_end =
        k + kPackPairSteps < source.contraction ? k + kPackPairSteps : source.contraction;
    for (std::int64_t lane = begin; lane < end; lane += 16) {
      float* first = packed + (lane - begin) * steps;
      const RowSink sink{first, end - lane > kRows ? first + kRows * steps : nullptr};
      pack_sixteen(pairs, source, lane, end - lane, k, k_end, sink);
    }
  }
}

template <class Pairs>
void pack_column_pairs(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  static_assert(kVector == 16);
  const Pairs pairs(source);
  const std::int64_t steps = (source.contraction + 1) / 2;
  for (std::int64_t k = 0; k < source.contraction; k += kPackPairSteps) {
    const std::int64_t k_end =
        k + kPackPairSteps < source.contraction ? k + kPackPairSteps : source.contraction;
    for_column_panels(end - begin, [&](std::int64_t column, int vectors) {
      for (int v = 0; v < vectors; ++v) {
        const std::int64_t lane = begin + column + v * kVector;
        const ColumnSink sink{packed + column * steps + v * kVector, vectors * kVector};
        pack_sixteen(pairs, source, lane, end - lane, k, k_end, sink);
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
