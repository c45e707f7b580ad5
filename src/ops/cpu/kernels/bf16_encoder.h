/// FP8 from 32 BF16 numbers at once, where the level has instructions for it: what is compared and counted is
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
  }

  bool usable() const { return usable_; }

  [[gnu::always_inline]] void store(Halves halves, std::uint8_t* to) {
    const auto x = reinterpret_cast<__m512i>(halves);
    const __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF));
    const __mmask32 number = _mm512_cmple_epu16_mask(magnitude, _mm512_set1_epi16(0x7F80));
    amax_ = _mm512_mask_max_epu16(amax_, number, amax_, magnitude);
    numbers_ += _mm_popcnt_u32(number);
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
  }

 private:
  typedef std::uint8_t Bytes __attribute__((vector_size(kPairLanes)));

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
  std::int64_t elements_ = 0, numbers_ = 0, beyond_ = 0, underflowed_ = 0;
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
