/// FP8 from 64 FP32 numbers at once, where the level has instructions for it and all results are normal FP8 numbers or
/// zeros. For kernel files only.
#pragma once

#include "ops/cpu/kernels/rows.h"
#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Numbers that the encoders of whole stretches take at once.
constexpr int kStretch = 4 * kLanes;

/// A magnitude up to which numbers do not saturate; a little inside the limit, whatever is rounded.
inline float largest_inside(bool e5m2, float scale) {
  return (e5m2 ? 57340.0f : 447.9f) / scale;
}

#if defined(__AVX512BF16__)

/// The arithmetic of Fp8Encoder (quantize.h) where it needs no limits: the upper bits of the product, rounded, are the code
/// but for the exponent's bias.
class F32Encoder {
 public:
  F32Encoder(bool e5m2, float scale)
      : scale_(_mm512_set1_ps(scale)),
        shift_(_mm_cvtsi32_si128(e5m2 ? 21 : 20)),
        rounding_(_mm512_set1_epi32(e5m2 ? 0xFFFFF - (112 << 23) : 0x7FFFF - (120 << 23))) {
    // A little inside the limits: what lies between is the general encoder's.
    const float least = (e5m2 ? 0x1.001p-14f : 0x1.001p-6f) / scale, most = largest_inside(e5m2, scale);
    if (!(least >= 0x1p-126f && most < __builtin_inff())) return;
    least_ = _mm512_set1_epi32(__builtin_bit_cast(std::int32_t, least));
    most_ = _mm512_set1_epi32(__builtin_bit_cast(std::int32_t, most));
    alignas(64) std::uint8_t order[64];
    for (int i = 0; i < 64; ++i) {
      const int vector = i / kLanes;
      order[i] = static_cast<std::uint8_t>(vector / 2 * 64 + vector % 2 * 2 + i % kLanes * 4);
    }
    order_ = _mm512_load_si512(order);
  }

  /// False, with nothing done, if a result is neither normal nor a zero's. `to` is written past the caches if `streams` and
  /// it is aligned.
  [[gnu::always_inline]] bool store(const float* from, std::uint8_t* to, bool streams) {
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF), minus_one = _mm512_set1_epi32(-1);
    __m512i x[4], x_magnitude[4];
    __m512i largest = _mm512_setzero_si512(), least = minus_one;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm512_loadu_si512(from + i * kLanes);
      x_magnitude[i] = _mm512_and_si512(x[i], magnitude);
      largest = _mm512_maskz_max_epu32(0xFFFF, largest, x_magnitude[i]);
      // Zero less one is the largest number.
      least = _mm512_maskz_min_epu32(0xFFFF, least, _mm512_add_epi32(x_magnitude[i], minus_one));
    }
    const __mmask16 outside =
        _mm512_cmpgt_epu32_mask(largest, most_) | _mm512_cmplt_epu32_mask(least, least_);
    if (__builtin_expect(outside != 0, 0)) return false;
    amax_ = _mm512_maskz_max_epu32(0xFFFF, amax_, largest);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      zeros_ += kLanes - _mm_popcnt_u32(_mm512_test_epi32_mask(x_magnitude[i], x_magnitude[i]));
    __m512i code[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) code[i] = code_of(x[i], x_magnitude[i]);
    const __m512i low = _mm512_or_si512(code[0], _mm512_maskz_slli_epi32(0xFFFF, code[1], 16));
    const __m512i high = _mm512_or_si512(code[2], _mm512_maskz_slli_epi32(0xFFFF, code[3], 16));
    const __m512i bytes = _mm512_permutex2var_epi8(low, order_, high);
    if (streams && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bytes);
    } else {
      _mm512_storeu_si512(to, bytes);
    }
    return true;
  }

  void add_to(CastCounts& counts) const {
    std::int32_t lanes[kLanes];
    _mm512_storeu_si512(lanes, amax_);
    for (const std::int32_t bits : lanes) {
      if (bits > counts.amax_bits) counts.amax_bits = bits;
    }
    counts.zeros += zeros_;
  }

 private:
  [[gnu::always_inline]] __m512i code_of(__m512i x, __m512i x_magnitude) const {
    const __m512i y = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(x_magnitude), scale_));
    // Half of the last place less one, and one more if the last place is odd: ties go to even.
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srl_epi32(0xFFFF, y, shift_), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(y, rounding_), odd);
    const __mmask16 nonzero = _mm512_test_epi32_mask(y, y);
    const __m512i code = _mm512_maskz_srl_epi32(nonzero, rounded, shift_);
    return _mm512_ternarylogic_epi32(code, _mm512_maskz_srli_epi32(0xFFFF, x, 24), _mm512_set1_epi32(0x80),
                                     0xF8);
  }

  __m512 scale_;
  __m128i shift_;
  __m512i rounding_;
  __m512i least_ = _mm512_set1_epi32(-1), most_ = _mm512_setzero_si512();  // at first nothing is inside
  __m512i order_ = _mm512_setzero_si512();
  __m512i amax_ = _mm512_setzero_si512();
  std::int64_t zeros_ = 0;
};

#else

/// Encodes nothing.
struct F32Encoder {
  F32Encoder(bool, float) {}
  bool store(const float*, std::uint8_t*, bool) { return false; }
  void add_to(CastCounts&) const {}
};

#endif

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
