/// FP8 from BF16 numbers, 32 or 64 at once, where the level has instructions for it: what is compared and counted is
/// compared as 16-bit integers. For kernel files only.
#pragma once

#include "ops/cpu/kernels/rows.h"
#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr int kPairLanes = 2 * kLanes;

#if defined(__AVX512BF16__)

template <typename T>
constexpr bool kHasPairs = false;
template <>
constexpr bool kHasPairs<Bf16> = true;

/// 32 BF16 numbers.
typedef std::uint16_t Halves __attribute__((vector_size(64)));

[[gnu::always_inline]] inline f32x16 low_of(Halves x) {
  return load(reinterpret_cast<const Bf16*>(&x), Full{});
}
[[gnu::always_inline]] inline f32x16 high_of(Halves x) {
  return load(reinterpret_cast<const Bf16*>(&x) + kLanes, Full{});
}

[[gnu::always_inline]] inline Halves to_halves(f32x16 low, f32x16 high) {
  if (suits_native_bf16(low) && suits_native_bf16(high)) {
    return reinterpret_cast<Halves>(
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high.part[0]), reinterpret_cast<__m512>(low.part[0])));
  }
  Halves x;
  store(low, reinterpret_cast<Bf16*>(&x), Full{});
  store(high, reinterpret_cast<Bf16*>(&x) + kLanes, Full{});
  return x;
}

/// The largest magnitude up to infinity whose product with `scale` is at most `bound`. Products grow with the
/// magnitude.
inline std::int32_t largest_below(float scale, float bound) {
  std::int32_t inside = 0, outside = 0x7F80;
  while (outside - inside > 1) {
    const std::int32_t middle = (inside + outside) / 2;
    const bool fits = to_f32(Bf16{static_cast<std::uint16_t>(middle)}) * scale <= bound;
    (fits ? inside : outside) = middle;
  }
  return inside;
}

// Masks of all lanes below: g++ 12 warns of the uninitialised operand inside the plain intrinsics.
/// The arithmetic of Fp8Encoder (quantize.h). A product with one scale grows with the magnitude, so the limits of
/// saturation and underflow are magnitudes of x, found once.
///
/// Two vectors whose results are normal FP8 numbers or zeros need no arithmetic: doubling x doubles the product exactly
/// and adds one step of the exponent to the code, so the code is that of any other x with the same mantissa, of which there
/// are 128, plus the difference of the exponents.
class Bf16Encoder {
 public:
  Bf16Encoder(bool e5m2, float scale, bool wanted)
      : usable_(wanted && scale > 0 && scale < __builtin_inff()),
        scale_(_mm512_set1_ps(scale)),
        min_exponent_(_mm512_set1_epi32((e5m2 ? 113 : 121) << 23)),
        // Minus the code's offset, as a byte in the low bits: an even number, so ties round as without it.
        magic_(_mm512_set1_epi32(e5m2 ? (21 << 23) + 0x3C : (20 << 23) + 0x38)),
        exponent_shift_(_mm_cvtsi32_si128(e5m2 ? 21 : 20)) {
    if (!usable_) return;
    const std::int32_t limit = largest_below(scale, e5m2 ? 57344.0f : 448.0f);
    usable_ = limit < 0x7F7F;  // then a finite neighbour saturates, and `limit` itself has the largest code
    limit_ = _mm512_set1_epi16(static_cast<short>(limit));
    zero_limit_ = _mm512_set1_epi16(static_cast<short>(largest_below(scale, e5m2 ? 0x1p-17f : 0x1p-10f)));
    prepare_pairs(e5m2);
  }

  bool usable() const { return usable_; }

  [[gnu::always_inline]] void store(Halves halves, std::uint8_t* to) {
    const auto x = reinterpret_cast<__m512i>(halves);
    const __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF));
    const __mmask32 number = _mm512_cmple_epu16_mask(magnitude, _mm512_set1_epi16(0x7F80));
    amax_ = _mm512_mask_max_epu16(amax_, number, amax_, magnitude);
    numbers_ += _mm_popcnt_u32(number);
    finite_ += _mm_popcnt_u32(_mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(0x7F80)));
    zeros_ += _mm_popcnt_u32(_mm512_cmpeq_epu16_mask(magnitude, _mm512_setzero_si512()));
    beyond_ += _mm_popcnt_u32(_mm512_cmpgt_epu16_mask(magnitude, limit_));
    // Zero less one is the largest 16-bit number.
    underflowed_ += _mm_popcnt_u32(
        _mm512_cmplt_epu16_mask(_mm512_add_epi16(magnitude, _mm512_set1_epi16(-1)), zero_limit_));
    elements_ += kPairLanes;

    const __m512i clamped = _mm512_maskz_min_epu16(0xFFFFFFFF, magnitude, limit_);
    const __m512i even = steps_of(_mm512_maskz_slli_epi32(0xFFFF, clamped, 16));
    const __m512i odd = steps_of(_mm512_and_si512(clamped, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
    __m512i code = _mm512_mask_mov_epi16(even, 0xAAAAAAAA, _mm512_maskz_slli_epi32(0xFFFF, odd, 16));
    // code | (sign & 0x80)
    code = _mm512_ternarylogic_epi32(code, _mm512_maskz_srli_epi16(0xFFFFFFFF, x, 8), _mm512_set1_epi16(0x80),
                                     0xF8);
    code = _mm512_mask_mov_epi16(_mm512_set1_epi16(0x7F), number, code);
    store_native(reinterpret_cast<Bytes>(_mm512_maskz_cvtepi16_epi8(0xFFFFFFFF, code)), to);
  }

  /// Twice 32 numbers. `to` is written past the caches if `streams` and it is aligned.
  [[gnu::always_inline]] void store_two(Halves first, Halves second, std::uint8_t* to, bool streams) {
    const auto a = reinterpret_cast<__m512i>(first), b = reinterpret_cast<__m512i>(second);
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF), minus_one = _mm512_set1_epi16(-1);
    const __m512i a_magnitude = _mm512_and_si512(a, magnitude), b_magnitude = _mm512_and_si512(b, magnitude);
    const __m512i largest = _mm512_maskz_max_epu16(kAll, a_magnitude, b_magnitude);
    const __m512i least = _mm512_maskz_min_epu16(kAll, _mm512_add_epi16(a_magnitude, minus_one),
                                                 _mm512_add_epi16(b_magnitude, minus_one));
    const __mmask32 outside =
        _mm512_cmpgt_epu16_mask(largest, limit_) | _mm512_cmplt_epu16_mask(least, normal_limit_);
    if (__builtin_expect(outside != 0, 0)) {
      store(first, to);
      store(second, to + kPairLanes);
      return;
    }
    amax_ = _mm512_maskz_max_epu16(kAll, amax_, largest);
    elements_ += 2 * kPairLanes;
    numbers_ += 2 * kPairLanes;
    finite_ += 2 * kPairLanes;
    const __m512i mantissas = _mm512_permutex2var_epi8(a, low_bytes_, b);
    const __m512i signs = _mm512_permutex2var_epi8(a, high_bytes_, b);
    const __m512i exponents =
        _mm512_permutex2var_epi8(_mm512_maskz_srl_epi16(kAll, a, step_shift_), low_bytes_,
                                 _mm512_maskz_srl_epi16(kAll, b, step_shift_));
    const __m512i differences = _mm512_permutex2var_epi8(low_table_, mantissas, high_table_);
    const __mmask64 nonzero =
        _mm512_kunpackd(_mm512_test_epi16_mask(b, magnitude), _mm512_test_epi16_mask(a, magnitude));
    zeros_ += 2 * kPairLanes - __builtin_popcountll(nonzero);
    __m512i code = _mm512_maskz_add_epi8(nonzero, exponents, differences);
    code = _mm512_ternarylogic_epi32(code, signs, _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);
    if (streams && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), code);
    } else {
      _mm512_storeu_si512(to, code);
    }
  }

  void add_to(CastCounts& counts) const {
    const std::int64_t nan = elements_ - numbers_;
    std::uint16_t lanes[kPairLanes];
    store_native(reinterpret_cast<Halves>(amax_), lanes);
    for (std::uint16_t lane : lanes) {
      const std::int32_t bits = static_cast<std::int32_t>(lane) << 16;
      if (bits > counts.amax_bits) counts.amax_bits = bits;
    }
    counts.saturated += beyond_ - nan;
    counts.underflowed += underflowed_;
    counts.nan += nan;
    counts.infinite += numbers_ - finite_;
    counts.zeros += zeros_;
  }

 private:
  typedef std::uint8_t Bytes __attribute__((vector_size(kPairLanes)));
  static constexpr __mmask32 kAll = 0xFFFFFFFF;

  void prepare_pairs(bool e5m2) {
    const float scale = _mm512_cvtss_f32(scale_), smallest_normal = e5m2 ? 0x1p-14f : 0x1p-6f;
    // x * scale in [1, 4) for the mantissas of this exponent.
    const std::int32_t exponent = 254 - (__builtin_bit_cast(std::int32_t, scale) >> 23 & 255);
    const std::int32_t normal_limit = largest_below(scale, smallest_normal);
    if (exponent < 1 || exponent > 253 || normal_limit < 0x7F) return;  // denormals have no leading one
    normal_limit_ = _mm512_set1_epi16(static_cast<short>(normal_limit));
    step_shift_ = _mm_cvtsi32_si128(e5m2 ? 5 : 4);
    alignas(64) std::uint8_t low[64], high[64], table[128];
    for (int i = 0; i < 64; ++i) {
      low[i] = static_cast<std::uint8_t>(2 * i);
      high[i] = static_cast<std::uint8_t>(2 * i + 1);
    }
    for (std::int32_t m = 0; m < 128; m += kLanes) {
      std::int32_t codes[kLanes];
      std::uint32_t x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = static_cast<std::uint32_t>(exponent << 7 | (m + i)) << 16;
      _mm512_storeu_si512(codes, steps_of(_mm512_loadu_si512(x)));
      for (int i = 0; i < kLanes; ++i)
        table[m + i] =
            static_cast<std::uint8_t>(codes[i] - static_cast<std::int32_t>(x[i] >> 16 >> (e5m2 ? 5 : 4)));
    }
    low_bytes_ = _mm512_load_si512(low);
    high_bytes_ = _mm512_load_si512(high);
    low_table_ = _mm512_load_si512(table);
    high_table_ = _mm512_load_si512(table + 64);
  }
  /// The code in the low byte of every lane, given FP32 magnitudes.
  [[gnu::always_inline]] __m512i steps_of(__m512i x) const {
    const __m512 y = _mm512_mul_ps(_mm512_castsi512_ps(x), scale_);
    const __m512i bits = _mm512_castps_si512(y);
    const __m512i exponent =
        _mm512_maskz_max_epi32(0xFFFF, _mm512_and_si512(bits, _mm512_set1_epi32(0x7F800000)), min_exponent_);
    const __m512 sum = _mm512_add_ps(y, _mm512_castsi512_ps(_mm512_add_epi32(exponent, magic_)));
    return _mm512_add_epi32(_mm512_castps_si512(sum),
                            _mm512_maskz_srl_epi32(0xFFFF, exponent, exponent_shift_));
  }

  bool usable_;
  __m512 scale_;
  __m512i min_exponent_, magic_;
  __m128i exponent_shift_;
  __m512i limit_ = _mm512_setzero_si512(), zero_limit_ = _mm512_setzero_si512();
  __m512i amax_ = _mm512_setzero_si512();
  // Of store_two: the largest magnitude whose result is no more than the smallest normal number (at first all of them),
  // and what it permutes and shifts by.
  __m512i normal_limit_ = _mm512_set1_epi16(-1);
  __m512i low_bytes_ = _mm512_setzero_si512(), high_bytes_ = _mm512_setzero_si512();
  __m512i low_table_ = _mm512_setzero_si512(), high_table_ = _mm512_setzero_si512();
  __m128i step_shift_ = _mm_setzero_si128();
  std::int64_t elements_ = 0, numbers_ = 0, finite_ = 0, zeros_ = 0, beyond_ = 0, underflowed_ = 0;
};

#else

template <typename T>
constexpr bool kHasPairs = false;

/// Encodes nothing: kHasPairs is false.
struct Bf16Encoder {
  Bf16Encoder(bool, float, bool) {}
  void add_to(CastCounts&) const {}
};

#endif

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
