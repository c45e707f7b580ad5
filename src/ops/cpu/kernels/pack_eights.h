/// Packing eight elements at once at level avx2, exactly as one by one. At level avx512 pairs are packed instead (pack_pairs.h), FP32 matrices
/// are rare, and `baseline` has no such vectors.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/cpu/kernels/pack_elements.h"

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr std::int64_t kEight = 8;

/// FP16 numbers as FP32 ones. Denormals are taken as they are, whatever MXCSR says.
inline __m256 widen(E5m2Elements, __m128i codes) {
  return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), codes));  // an FP16 number's upper byte
}
/// As FP16 numbers their exponents are 8 too small; what would be 480 is NaN.
inline __m256 widen(E4m3Elements, __m128i codes) {
  const __m128i upper = _mm_unpacklo_epi8(_mm_setzero_si128(), codes), all = _mm_set1_epi16(0x7F00),
                halves = _mm_and_si128(_mm_srai_epi16(upper, 1), _mm_set1_epi16(static_cast<short>(0xBFFF)));
  const __m256 numbers = _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(0x1p8f));
  const __m256i nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(_mm_and_si128(upper, all), all));
  return _mm256_or_ps(numbers, _mm256_castsi256_ps(nan));
}
inline __m256 widen(Bf16Elements, __m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/// `kCount` elements, 4 or 8, in the lower places of the result.
template <class Elements, int kCount>
__m256 widened(const typename Elements::Type* from) {
  if constexpr (std::is_same_v<Elements, F32Elements>) {
    return kCount == kEight ? _mm256_loadu_ps(from) : _mm256_castps128_ps256(_mm_loadu_ps(from));
  } else {
    __m128i bits = _mm_setzero_si128();
    std::memcpy(&bits, from, kCount * sizeof(*from));
    return widen(Elements(), bits);
  }
}

/// Widens `count` elements that follow one another.
template <class Elements>
void widen_run(const typename Elements::Type* from, std::int64_t count, float* to) {
  std::int64_t i = 0;
  for (; i + kEight <= count; i += kEight) _mm256_storeu_ps(to + i, widened<Elements, kEight>(from + i));
  if (i + 4 <= count) {
    _mm_storeu_ps(to + i, _mm256_castps256_ps128(widened<Elements, 4>(from + i)));
    i += 4;
  }
  for (; i < count; ++i) to[i] = Elements::load(from[i]);
}

/// Element i of vector j becomes element j of vector i.
inline void transpose(__m256 (&rows)[kEight]) {
  __m256 pairs[kEight], fours[kEight];
#pragma GCC unroll 4
  for (int i = 0; i < kEight; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kEight; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

/// Eight lanes as widen_transposed has them; returns where the whole eights of steps end.
template <class Elements>
std::int64_t widen_eight_lanes(const typename Elements::Type* from, std::int64_t stride, std::int64_t begin,
                               std::int64_t end, std::int64_t width, float* panel) {
  std::int64_t i = begin;
  for (; i + kEight <= end; i += kEight) {
    __m256 eights[kEight];
#pragma GCC unroll 8
    for (int lane = 0; lane < kEight; ++lane)
      eights[lane] = widened<Elements, kEight>(from + lane * stride + i);
    transpose(eights);
#pragma GCC unroll 8
    for (int step = 0; step < kEight; ++step) _mm256_storeu_ps(panel + (i + step) * width, eights[step]);
  }
  return i;
}

/// As widen_transposed_singly.
template <class Elements>
void widen_transposed(const typename Elements::Type* from, std::int64_t stride, std::int64_t lanes,
                      std::int64_t begin, std::int64_t end, std::int64_t width, float* panel) {
  for (; lanes >= kEight; lanes -= kEight) {
    const std::int64_t done = widen_eight_lanes<Elements>(from, stride, begin, end, width, panel);
    widen_transposed_singly<Elements>(from, stride, kEight, done, end, width, panel);
    from += kEight * stride;
    panel += kEight;
  }
  widen_transposed_singly<Elements>(from, stride, lanes, begin, end, width, panel);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#else

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <class Elements>
void widen_run(const typename Elements::Type* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = Elements::load(from[i]);
}
template <class Elements>
void widen_transposed(const typename Elements::Type* from, std::int64_t stride, std::int64_t lanes,
                      std::int64_t begin, std::int64_t end, std::int64_t width, float* panel) {
  widen_transposed_singly<Elements>(from, stride, lanes, begin, end, width, panel);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL

#endif
