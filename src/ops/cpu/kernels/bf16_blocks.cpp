#include "ops/cpu/kernels/bf16_blocks.h"

#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

#if defined(__AVX512BF16__)

constexpr int kHalves = 32, kBoth = 2 * kHalves;
constexpr __mmask32 kAll = 0xFFFFFFFF;

[[gnu::always_inline]] inline __m512i halves(int value) {
  return _mm512_set1_epi16(static_cast<short>(value));
}
[[gnu::always_inline]] inline __mmask32 first(std::int64_t count) {
  return count >= kHalves ? kAll : count <= 0 ? 0 : (__mmask32{1} << count) - 1;
}
[[gnu::always_inline]] inline __m512i magnitude_of(__m512i x) {
  return _mm512_and_si512(x, halves(0x7FFF));
}

void raise(const std::uint16_t* x, std::int64_t cols, std::uint16_t* largest) {
  for (std::int64_t n = 0; n < cols; n += kHalves) {
    const __mmask32 lanes = first(cols - n);
    const __m512i magnitude = magnitude_of(_mm512_maskz_loadu_epi16(lanes, x + n));
    const __m512i old = _mm512_maskz_loadu_epi16(lanes, largest + n);
    _mm512_mask_storeu_epi16(largest + n, lanes, _mm512_maskz_max_epu16(kAll, magnitude, old));
  }
}

[[gnu::always_inline]] inline std::uint16_t largest_lane(__m512i v) {
  const __m256i sixteen = _mm256_max_epu16(_mm512_maskz_extracti64x4_epi64(0xF, v, 0),
                                           _mm512_maskz_extracti64x4_epi64(0xF, v, 1));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(sixteen), _mm256_extracti128_si256(sixteen, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return static_cast<std::uint16_t>(~_mm_cvtsi128_si32(least));
}

void largest_of_groups(const std::uint16_t* x, std::int64_t cols, std::int64_t size, std::uint16_t* largest) {
  for (std::int64_t begin = 0; begin < cols; begin += size, ++largest) {
    const std::int64_t count = cols - begin < size ? cols - begin : size;
    __m512i best = _mm512_setzero_si512();
    for (std::int64_t n = 0; n < count; n += kHalves) {
      const __m512i some = _mm512_maskz_loadu_epi16(first(count - n), x + begin + n);
      best = _mm512_maskz_max_epu16(kAll, best, magnitude_of(some));
    }
    *largest = largest_lane(best);
  }
}

void spread(const std::int16_t* of_groups, std::int64_t cols, std::int64_t size, std::int16_t* to) {
  for (std::int64_t begin = 0; begin < cols; begin += size, ++of_groups) {
    const __m512i value = halves(*of_groups);
    const std::int64_t count = cols - begin < size ? cols - begin : size;
    for (std::int64_t n = 0; n < count; n += kHalves) _mm512_storeu_si512(to + begin + n, value);
  }
}

/// Codes of 32 numbers in the low bytes of lanes.
template <bool e5m2>
struct Codes {
  static constexpr int kDropped = dropped_bits(e5m2), kRounding = (1 << (kDropped - 1)) - 1;
  static constexpr int kNormal = 128;  // bits of the smallest normal number, after the change of bias

  __m512i x, magnitude, biased;  // biased: with half a last place less one
  __mmask32 nonzero;

  [[gnu::always_inline]] Codes(__m512i numbers, const std::int16_t* offset, __mmask32 lanes)
      : x(numbers),
        magnitude(magnitude_of(numbers)),
        biased(_mm512_add_epi16(magnitude, _mm512_maskz_loadu_epi16(lanes, offset))),
        nonzero(_mm512_test_epi16_mask(magnitude, magnitude)) {}

  /// Whether a result is subnormal or underflows.
  [[gnu::always_inline]] __mmask32 small() const {
    return _mm512_mask_cmplt_epi16_mask(nonzero, biased, halves(kNormal + kRounding));
  }
  [[gnu::always_inline]] __m512i with_signs(__m512i code) const {
    return _mm512_ternarylogic_epi32(code, _mm512_maskz_srli_epi16(kAll, x, 8), halves(0x80), 0xF8);
  }
  /// Where no result is small.
  [[gnu::always_inline]] __m512i of_normal() const {
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi16(kAll, magnitude, kDropped), halves(1));
    return with_signs(_mm512_maskz_srli_epi16(nonzero, _mm512_add_epi16(biased, odd), kDropped));
  }
  /// Of any: small numbers are shifted with their leading one, as far as their exponent says.
  [[gnu::always_inline]] __m512i of_any() const {
    const __m512i bits = _mm512_sub_epi16(biased, halves(kRounding));
    const __mmask32 small_lanes = _mm512_cmplt_epi16_mask(bits, halves(kNormal));
    const __m512i further = _mm512_sub_epi16(halves(kDropped + 1), _mm512_maskz_srai_epi16(kAll, bits, 7));
    const __m512i shift = _mm512_mask_min_epi16(halves(kDropped), small_lanes, further, halves(15));
    const __m512i with_one = _mm512_ternarylogic_epi32(halves(0x80), magnitude, halves(0x7F),
                                                       0xF8);  // one | (magnitude & mantissa)
    const __m512i number = _mm512_mask_mov_epi16(bits, small_lanes, with_one);
    const __m512i half = _mm512_maskz_sllv_epi16(kAll, halves(1), _mm512_sub_epi16(shift, halves(1)));
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srlv_epi16(kAll, number, shift), halves(1));
    const __m512i rounded =
        _mm512_add_epi16(_mm512_add_epi16(number, odd), _mm512_sub_epi16(half, halves(1)));
    return with_signs(_mm512_maskz_srlv_epi16(nonzero, rounded, shift));
  }
};

struct Counted {
  std::int64_t nonzero = 0, underflowed = 0;
};

template <bool e5m2>
[[gnu::always_inline]] inline __m512i encode_both(__m512i order, const Codes<e5m2>& a, const Codes<e5m2>& b,
                                                  Counted& counted) {
  const __mmask64 nonzero = _mm512_kunpackd(b.nonzero, a.nonzero);
  counted.nonzero += __builtin_popcountll(nonzero);
  if (__builtin_expect((a.small() | b.small()) == 0, 1))
    return _mm512_permutex2var_epi8(a.of_normal(), order, b.of_normal());
  const __m512i codes = _mm512_permutex2var_epi8(a.of_any(), order, b.of_any());
  counted.underflowed +=
      __builtin_popcountll(nonzero & ~_mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x7F)));
  return codes;
}

template <bool e5m2>
[[gnu::always_inline]] inline void encode_row(__m512i order, const std::uint16_t* x, std::int64_t stride,
                                              const std::int16_t* offset, std::int64_t cols, bool streams,
                                              std::uint8_t* codes, Counted& counted) {
  std::int64_t n = 0;
  for (; n + kBoth <= cols; n += kBoth) {
    const Codes<e5m2> a(_mm512_loadu_si512(x + n), offset + n, kAll),
        b(_mm512_loadu_si512(x + n + kHalves), offset + n + kHalves, kAll);
    __builtin_prefetch(x + n + stride);
    __builtin_prefetch(x + n + stride + kHalves);
    const __m512i both = encode_both(order, a, b, counted);
    if (streams && reinterpret_cast<std::uintptr_t>(codes + n) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(codes + n), both);
    } else {
      _mm512_storeu_si512(codes + n, both);
    }
  }
  if (n == cols) return;
  const __mmask32 front = first(cols - n), back = first(cols - n - kHalves);
  const Codes<e5m2> a(_mm512_maskz_loadu_epi16(front, x + n), offset + n, front),
      b(_mm512_maskz_loadu_epi16(back, x + n + kHalves), offset + n + kHalves, back);
  _mm512_mask_storeu_epi8(codes + n, _mm512_kunpackd(back, front), encode_both(order, a, b, counted));
}

template <bool e5m2>
void encode_rows(Extent extent, ConstRows x, const std::int16_t* offset, bool streams, std::uint8_t* codes,
                 std::int64_t stride, CodeCounts& counts) {
  alignas(64) std::uint8_t low[kBoth];
  for (int i = 0; i < kBoth; ++i) low[i] = static_cast<std::uint8_t>(2 * i);
  const __m512i order = _mm512_load_si512(low);
  Counted counted;
  const auto* from = static_cast<const std::uint16_t*>(x.data);
  for (std::int64_t row = 0; row < extent.rows; ++row)
    encode_row<e5m2>(order, from + row * x.stride, x.stride, offset, extent.cols, streams,
                     codes + row * stride, counted);
  counts.zeros += extent.rows * extent.cols - counted.nonzero;
  counts.underflowed += counted.underflowed;
}

void encode(bool e5m2, Extent extent, ConstRows x, const std::int16_t* offset, bool streams,
            std::uint8_t* codes, std::int64_t stride, CodeCounts& counts) {
  e5m2 ? encode_rows<true>(extent, x, offset, streams, codes, stride, counts)
       : encode_rows<false>(extent, x, offset, streams, codes, stride, counts);
}

void finish() {
  _mm_sfence();
}

constexpr Bf16BlockKernels kTable = {.exist = true,
                                     .raise = raise,
                                     .largest_of_groups = largest_of_groups,
                                     .spread = spread,
                                     .encode = encode,
                                     .finish = finish};

#else

constexpr Bf16BlockKernels kTable;

#endif

}  // namespace

extern const Bf16BlockKernels bf16_block_kernels;
const Bf16BlockKernels bf16_block_kernels = kTable;

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
