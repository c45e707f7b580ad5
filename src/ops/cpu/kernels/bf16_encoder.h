/// FP8 from BF16 numbers, 32 or 64 at once, where the level has instructions for it: what is compared and counted is
/// compared as 16-bit integers. For kernel files only.
#pragma once

#include "ops/cpu/kernels/rows.h"
#include "ops/cpu/kernels/simd_memory.h"

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

/// Rounds N vectors to N / 2 of halves.
template <int N>
[[gnu::always_inline]] inline void to_halves(F32<N> v, Halves* to) {
  if (!suits_native_bf16(v)) return store(v, reinterpret_cast<Bf16*>(to), Whole<N>{});
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; ++i) {
    to[i] = reinterpret_cast<Halves>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(v.part[2 * i + 1]),
                                                         reinterpret_cast<__m512>(v.part[2 * i])));
  }
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
/// Vectors whose results are normal FP8 numbers or zeros need no arithmetic: doubling x doubles the product exactly
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
    __m512i code = codes_of(clamped);
    // code | (sign & 0x80)
    code = _mm512_ternarylogic_epi32(code, _mm512_maskz_srli_epi16(0xFFFFFFFF, x, 8), _mm512_set1_epi16(0x80),
                                     0xF8);
    code = _mm512_mask_mov_epi16(_mm512_set1_epi16(0x7F), number, code);
    store_native(reinterpret_cast<Bytes>(_mm512_maskz_cvtepi16_epi8(0xFFFFFFFF, code)), to);
  }

  /// Twice 32 numbers. `to` is written past the caches if `streams` and it is aligned.
  [[gnu::always_inline]] void store_two(Halves first, Halves second, std::uint8_t* to, bool streams) {
    Range range;
    range.include(first, magnitudes_);
    range.include(second, magnitudes_);
    const Way way = way_of(range);
    if (way == Way::table) {
      count_finite(range, 2);
      const __m512i code = codes_by_table(first, second);
      store_codes(code, to, streams);
    } else if (way == Way::arithmetic) {
      count_finite(range, 2);
      store_codes(codes_by_arithmetic(first, second), to, streams);
    } else {
      store(first, to);
      store(second, to + kPairLanes);
    }
  }

  /// `count` times 32 numbers, kSameWay at once: small ones are scattered over most producers' results, and a predictor of
  /// branches cannot tell where.
  [[gnu::always_inline]] void store_run(const Halves* x, std::int64_t count, std::uint8_t* to, bool streams) {
    constexpr std::int64_t kSameWay = 4;
    for (std::int64_t begin = 0; begin < count; begin += kSameWay)
      store_in_one_way(x + begin, count - begin < kSameWay ? count - begin : kSameWay,
                       to + begin * kPairLanes, streams);
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

  [[gnu::always_inline]] void store_in_one_way(const Halves* x, std::int64_t count, std::uint8_t* to,
                                               bool streams) {
    Range range;
    for (std::int64_t i = 0; i < count; ++i) range.include(x[i], magnitudes_);
    const Way way = way_of(range);
    std::int64_t done = 0;
    if (way == Way::table) {
      for (; done + 2 <= count; done += 2)
        store_codes(codes_by_table(x[done], x[done + 1]), to + done * kPairLanes, streams);
    } else if (way == Way::arithmetic) {
      for (; done + 2 <= count; done += 2)
        store_codes(codes_by_arithmetic(x[done], x[done + 1]), to + done * kPairLanes, streams);
    }
    if (done > 0) count_finite(range, done);
    for (; done < count; ++done) store(x[done], to + done * kPairLanes);
  }

  [[gnu::always_inline]] static void store_codes(__m512i codes, std::uint8_t* to, bool streams) {
    if (streams && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), codes);
    } else {
      _mm512_storeu_si512(to, codes);
    }
  }

  [[gnu::always_inline]] static __m512i opaque(__m512i x) {
    asm("" : "+v"(x));
    return x;
  }

  static constexpr __mmask32 kAll = 0xFFFFFFFF;

  /// The largest magnitude and the least that is not zero, less one.
  struct Range {
    __m512i largest = _mm512_setzero_si512();
    __m512i least = _mm512_set1_epi16(-1);  // zero less one is the largest 16-bit number

    [[gnu::always_inline]] void include(Halves x, __m512i magnitudes) {
      const __m512i magnitude = _mm512_and_si512(reinterpret_cast<__m512i>(x), magnitudes);
      largest = _mm512_maskz_max_epu16(kAll, largest, magnitude);
      least = _mm512_maskz_min_epu16(kAll, least, _mm512_add_epi16(magnitude, _mm512_set1_epi16(-1)));
    }
  };

  /// table: results are normal numbers or zeros. arithmetic: all are finite.
  enum class Way { table, arithmetic, one_by_one };

  [[gnu::always_inline]] Way way_of(const Range& range) const {
    const __mmask32 unusual =
        _mm512_cmpgt_epu16_mask(range.largest, limit_) | _mm512_cmplt_epu16_mask(range.least, normal_limit_);
    if (unusual == 0) return Way::table;
    const __mmask32 not_finite = _mm512_cmpge_epu16_mask(range.largest, _mm512_set1_epi16(0x7F80));
    return not_finite == 0 ? Way::arithmetic : Way::one_by_one;
  }

  [[gnu::always_inline]] void count_finite(const Range& range, std::int64_t vectors) {
    amax_ = _mm512_maskz_max_epu16(kAll, amax_, range.largest);
    elements_ += vectors * kPairLanes;
    numbers_ += vectors * kPairLanes;
    finite_ += vectors * kPairLanes;
  }

  /// Counts zeros.
  [[gnu::always_inline]] __mmask64 nonzero_of(__m512i a, __m512i b) {
    const __mmask64 nonzero =
        _mm512_kunpackd(_mm512_test_epi16_mask(b, magnitudes_), _mm512_test_epi16_mask(a, magnitudes_));
    zeros_ += 2 * kPairLanes - __builtin_popcountll(nonzero);
    return nonzero;
  }

  [[gnu::always_inline]] __m512i with_signs(__m512i code, __m512i a, __m512i b) const {
    const __m512i signs = _mm512_permutex2var_epi8(a, high_bytes_, b);
    return _mm512_ternarylogic_epi32(code, signs, sign_bits_, 0xF8);
  }

  [[gnu::always_inline]] __m512i codes_by_table(Halves first, Halves second) {
    const auto a = reinterpret_cast<__m512i>(first), b = reinterpret_cast<__m512i>(second);
    const __m512i mantissas = _mm512_permutex2var_epi8(a, low_bytes_, b);
    const __m512i exponents =
        _mm512_permutex2var_epi8(_mm512_maskz_srl_epi16(kAll, a, step_shift_), low_bytes_,
                                 _mm512_maskz_srl_epi16(kAll, b, step_shift_));
    const __m512i differences = _mm512_permutex2var_epi8(low_table_, mantissas, high_table_);
    return with_signs(_mm512_maskz_add_epi8(nonzero_of(a, b), exponents, differences), a, b);
  }

  [[gnu::always_inline]] __m512i codes_by_arithmetic(Halves first, Halves second) {
    const auto a = reinterpret_cast<__m512i>(first), b = reinterpret_cast<__m512i>(second);
    const __m512i a_magnitude = _mm512_and_si512(a, magnitudes_),
                  b_magnitude = _mm512_and_si512(b, magnitudes_);
    beyond_ += __builtin_popcountll(_mm512_kunpackd(_mm512_cmpgt_epu16_mask(a_magnitude, limit_),
                                                    _mm512_cmpgt_epu16_mask(b_magnitude, limit_)));
    const __m512i code =
        _mm512_permutex2var_epi8(codes_of(_mm512_maskz_min_epu16(kAll, a_magnitude, limit_)), low_bytes_,
                                 codes_of(_mm512_maskz_min_epu16(kAll, b_magnitude, limit_)));
    underflowed_ +=
        __builtin_popcountll(nonzero_of(a, b)) - __builtin_popcountll(_mm512_test_epi8_mask(code, code));
    return with_signs(code, a, b);
  }

  void prepare_pairs(bool e5m2) {
    alignas(64) std::uint8_t low[64], high[64], table[128];
    for (int i = 0; i < 64; ++i) {
      low[i] = static_cast<std::uint8_t>(2 * i);
      high[i] = static_cast<std::uint8_t>(2 * i + 1);
    }
    low_bytes_ = _mm512_load_si512(low);
    high_bytes_ = _mm512_load_si512(high);
    const float scale = _mm512_cvtss_f32(scale_), smallest_normal = e5m2 ? 0x1p-14f : 0x1p-6f;
    // x * scale in [1, 4) for the mantissas of this exponent.
    const std::int32_t exponent = 254 - (__builtin_bit_cast(std::int32_t, scale) >> 23 & 255);
    const std::int32_t normal_limit = largest_below(scale, smallest_normal);
    if (exponent < 1 || exponent > 253 || normal_limit < 0x7F) return;  // denormals have no leading one
    normal_limit_ = _mm512_set1_epi16(static_cast<short>(normal_limit));
    step_shift_ = _mm_cvtsi32_si128(e5m2 ? 5 : 4);
    for (std::int32_t m = 0; m < 128; m += kLanes) {
      std::int32_t codes[kLanes];
      std::uint32_t x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = static_cast<std::uint32_t>(exponent << 7 | (m + i)) << 16;
      _mm512_storeu_si512(codes, steps_of(_mm512_loadu_si512(x)));
      for (int i = 0; i < kLanes; ++i)
        table[m + i] =
            static_cast<std::uint8_t>(codes[i] - static_cast<std::int32_t>(x[i] >> 16 >> (e5m2 ? 5 : 4)));
    }
    low_table_ = _mm512_load_si512(table);
    high_table_ = _mm512_load_si512(table + 64);
  }
  /// The code in the low byte of every 16-bit lane, given BF16 magnitudes of at most limit_.
  [[gnu::always_inline]] __m512i codes_of(__m512i magnitude) const {
    const __m512i even = steps_of(_mm512_maskz_slli_epi32(0xFFFF, magnitude, 16));
    const __m512i odd =
        steps_of(_mm512_and_si512(magnitude, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
    return _mm512_mask_mov_epi16(even, 0xAAAAAAAA, _mm512_maskz_slli_epi32(0xFFFF, odd, 16));
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
  // Kept as values of unknown contents: with too few registers g++ would make constants again, by broadcasts that take the place
  // of permutations, in place of reading them from memory.
  __m512i magnitudes_ = opaque(_mm512_set1_epi16(0x7FFF)),
          sign_bits_ = opaque(_mm512_set1_epi8(static_cast<char>(0x80)));
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
