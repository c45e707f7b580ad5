/// Vectors of 16 lanes for kernels, with the same bits at every instruction-set level: each operation is one
/// IEEE operation per lane, nothing is fused but by fused_multiply_add (the build says -ffp-contract=off), and
/// horizontal sums have one fixed order.
///
/// For kernel files only. Everything is in an anonymous namespace and inlined, so that code compiled for one
/// level never serves another.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kNativeLanes = 16;
#elif defined(__AVX2__)
constexpr int kNativeLanes = 8;
#else
constexpr int kNativeLanes = 4;
#endif
constexpr int kLanes = 16;
constexpr int kParts = kLanes / kNativeLanes;

typedef float NativeF32 __attribute__((vector_size(kNativeLanes * 4)));
typedef std::int32_t NativeI32 __attribute__((vector_size(kNativeLanes * 4)));

// Arrays of native vectors, not one 64-byte vector: g++ takes comparisons and selections of vectors wider
// than the registers apart into scalars.
/// N vectors. Code for several at once is as many independent chains, instruction by instruction: a processor
/// looks ahead over few instructions when each is a long chain's next.
template <int N>
struct F32 {
  NativeF32 part[N * kParts];
};
/// Also masks: a lane is all ones (true) or all zeros (false).
template <int N>
struct I32 {
  NativeI32 part[N * kParts];
};
using f32x16 = F32<1>;
using i32x16 = I32<1>;

/// Vectors that long chains (exponentials, divisions) are evaluated for at once: as many as the registers hold.
constexpr int kAtOnce = kNativeLanes == 16 ? 4 : 1;

/// f(p) for every native vector of a V.
template <typename V, typename F>
[[gnu::always_inline]] inline V for_parts(F part_of) {
  V r;
#pragma GCC unroll 16
  for (std::size_t p = 0; p < sizeof(V) / sizeof(r.part[0]); ++p) r.part[p] = part_of(p);
  return r;
}

template <int N = 1>
[[gnu::always_inline]] inline F32<N> f32s(float x) {
  return for_parts<F32<N>>([&](int) { return NativeF32{} + x; });
}
template <int N = 1>
[[gnu::always_inline]] inline I32<N> i32s(std::int32_t x) {
  return for_parts<I32<N>>([&](int) { return NativeI32{} + x; });
}

// ---- arithmetic and comparisons, lane by lane ----

template <int N>
[[gnu::always_inline]] inline F32<N> operator+(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) { return a.part[p] + b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator-(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) { return a.part[p] - b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator*(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) { return a.part[p] * b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator/(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) { return a.part[p] / b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator-(F32<N> a) {
  return for_parts<F32<N>>([&](int p) { return -a.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator+(F32<N> a, float b) {
  return a + f32s<N>(b);
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator-(F32<N> a, float b) {
  return a - f32s<N>(b);
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator*(F32<N> a, float b) {
  return a * f32s<N>(b);
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator+(float a, F32<N> b) {
  return f32s<N>(a) + b;
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator-(float a, F32<N> b) {
  return f32s<N>(a) - b;
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator*(float a, F32<N> b) {
  return f32s<N>(a) * b;
}
template <int N>
[[gnu::always_inline]] inline F32<N> operator/(float a, F32<N> b) {
  return f32s<N>(a) / b;
}
template <int N>
[[gnu::always_inline]] inline F32<N>& operator+=(F32<N>& a, F32<N> b) {
  return a = a + b;
}

template <int N>
[[gnu::always_inline]] inline I32<N> operator+(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] + b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator-(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] - b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator&(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] & b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator|(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] | b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator<<(I32<N> a, int n) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] << n; });
}
/// Arithmetic shift.
template <int N>
[[gnu::always_inline]] inline I32<N> operator>>(I32<N> a, int n) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] >> n; });
}
template <int N>
[[gnu::always_inline]] inline I32<N>& operator+=(I32<N>& a, I32<N> b) {
  return a = a + b;
}
template <int N>
[[gnu::always_inline]] inline I32<N>& operator-=(I32<N>& a, I32<N> b) {
  return a = a - b;
}

/// Masks; a comparison with NaN is false.
template <int N>
[[gnu::always_inline]] inline I32<N> operator>(F32<N> a, F32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] > b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator>(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] > b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> operator==(I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return a.part[p] == b.part[p]; });
}

template <int N>
[[gnu::always_inline]] inline F32<N> select(I32<N> mask, F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) { return mask.part[p] ? a.part[p] : b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> select(I32<N> mask, I32<N> a, I32<N> b) {
  return for_parts<I32<N>>([&](int p) { return mask.part[p] ? a.part[p] : b.part[p]; });
}
template <int N>
[[gnu::always_inline]] inline I32<N> max(I32<N> a, I32<N> b) {
  return select(a > b, a, b);
}
template <int N>
[[gnu::always_inline]] inline I32<N> min(I32<N> a, I32<N> b) {
  return select(a > b, b, a);
}
/// The second operand where either is NaN.
template <int N>
[[gnu::always_inline]] inline F32<N> max(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_maskz_max_ps(0xFFFF, reinterpret_cast<__m512>(a.part[p]),
                                                           reinterpret_cast<__m512>(b.part[p])));
#else
    return a.part[p] > b.part[p] ? a.part[p] : b.part[p];
#endif
  });
}

/// The second operand where either is NaN.
template <int N>
[[gnu::always_inline]] inline F32<N> min(F32<N> a, F32<N> b) {
  return for_parts<F32<N>>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_maskz_min_ps(0xFFFF, reinterpret_cast<__m512>(a.part[p]),
                                                           reinterpret_cast<__m512>(b.part[p])));
#else
    return b.part[p] > a.part[p] ? a.part[p] : b.part[p];
#endif
  });
}

/// The bits of floats as integers, and back.
template <int N>
[[gnu::always_inline]] inline I32<N> bits_of(F32<N> a) {
  return for_parts<I32<N>>([&](int p) { return reinterpret_cast<NativeI32>(a.part[p]); });
}
template <int N>
[[gnu::always_inline]] inline F32<N> float_of_bits(I32<N> a) {
  return for_parts<F32<N>>([&](int p) { return reinterpret_cast<NativeF32>(a.part[p]); });
}

/// Correctly rounded.
template <int N>
[[gnu::always_inline]] inline F32<N> sqrt(F32<N> a) {
  return for_parts<F32<N>>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_maskz_sqrt_ps(0xFFFF, reinterpret_cast<__m512>(a.part[p])));
#elif defined(__AVX2__)
    return reinterpret_cast<NativeF32>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a.part[p])));
#elif defined(__SSE2__)
    return reinterpret_cast<NativeF32>(_mm_sqrt_ps(reinterpret_cast<__m128>(a.part[p])));
#else
    NativeF32 r;
    for (int i = 0; i < kNativeLanes; ++i) r[i] = __builtin_sqrtf(a.part[p][i]);
    return r;
#endif
  });
}

/// a * b + c, rounded once. Levels without the instruction call the C library for every lane.
template <int N>
[[gnu::always_inline]] inline F32<N> fused_multiply_add(F32<N> a, F32<N> b, F32<N> c) {
  return for_parts<F32<N>>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a.part[p]),
                                                       reinterpret_cast<__m512>(b.part[p]),
                                                       reinterpret_cast<__m512>(c.part[p])));
#elif defined(__AVX2__)
    return reinterpret_cast<NativeF32>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a.part[p]),
                                                       reinterpret_cast<__m256>(b.part[p]),
                                                       reinterpret_cast<__m256>(c.part[p])));
#else
    NativeF32 r;
    for (int i = 0; i < kNativeLanes; ++i) r[i] = __builtin_fmaf(a.part[p][i], b.part[p][i], c.part[p][i]);
    return r;
#endif
  });
}
template <int N>
[[gnu::always_inline]] inline F32<N> fused_multiply_add(F32<N> a, float b, F32<N> c) {
  return fused_multiply_add(a, f32s<N>(b), c);
}
template <int N>
[[gnu::always_inline]] inline F32<N> fused_multiply_add(F32<N> a, float b, float c) {
  return fused_multiply_add(a, f32s<N>(b), f32s<N>(c));
}

// ---- across vectors and lanes ----

/// Whether a lane of the mask is true.
[[gnu::always_inline]] inline bool any(i32x16 mask) {
  NativeI32 all = mask.part[0];
#pragma GCC unroll 4
  for (int p = 1; p < kParts; ++p) all |= mask.part[p];
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(all), reinterpret_cast<__m512i>(all)) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(reinterpret_cast<__m256i>(all), reinterpret_cast<__m256i>(all)) == 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(all)) != 0;
#else
  std::int32_t bits = 0;
  for (int i = 0; i < kNativeLanes; ++i) bits |= all[i];
  return bits != 0;
#endif
}

/// ((total + v0) + v1) + ...
template <int N>
[[gnu::always_inline]] inline f32x16 add_each(f32x16 total, F32<N> v) {
#pragma GCC unroll 16
  for (int i = 0; i < N * kParts; ++i) total.part[i % kParts] = total.part[i % kParts] + v.part[i];
  return total;
}

/// max(v1, max(v0, best)) and so on.
template <int N>
[[gnu::always_inline]] inline f32x16 max_each(F32<N> v, f32x16 best) {
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    best = max(for_parts<f32x16>([&](int p) { return v.part[i * kParts + p]; }), best);
  }
  return best;
}

struct AddLanes {
  template <typename V>
  [[gnu::always_inline]] V operator()(V a, V b) const {
    return a + b;
  }
};
struct LargerLanes {
  [[gnu::always_inline]] float operator()(float a, float b) const { return a > b ? a : b; }
#if defined(__AVX512F__)
  [[gnu::always_inline]] __m128 operator()(__m128 a, __m128 b) const {
    return _mm_max_ps(a, b);
  }
  [[gnu::always_inline]] __m256 operator()(__m256 a, __m256 b) const {
    return _mm256_max_ps(a, b);
  }
#endif
};

/// Folds lane i + 8 into lane i, then i + 4, i + 2, i + 1.
template <typename Fold>
[[gnu::always_inline]] inline float fold_lanes(f32x16 v, Fold fold) {
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512>(v.part[0]);
  const __m256 eight =
      fold(_mm512_maskz_extractf32x8_ps(0xFF, all, 0), _mm512_maskz_extractf32x8_ps(0xFF, all, 1));
  const __m128 four = fold(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = fold(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(fold(two, _mm_movehdup_ps(two)));
#else
  float lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = fold(lanes[i], lanes[i + width]);
  }
  return lanes[0];
#endif
}

[[gnu::always_inline]] inline float sum(f32x16 v) {
  return fold_lanes(v, AddLanes{});
}
/// Of lanes whose sums have 32 bits.
[[gnu::always_inline]] inline std::int64_t sum(i32x16 v) {
  NativeI32 sums = v.part[0];
#pragma GCC unroll 4
  for (int p = 1; p < kParts; ++p) sums += v.part[p];
  std::int64_t total = 0;
  for (int i = 0; i < kNativeLanes; ++i) total += sums[i];
  return total;
}
[[gnu::always_inline]] inline std::int32_t largest(i32x16 v) {
  NativeI32 best = v.part[0];
#pragma GCC unroll 4
  for (int p = 1; p < kParts; ++p) best = v.part[p] > best ? v.part[p] : best;
  std::int32_t result = best[0];
  for (int i = 1; i < kNativeLanes; ++i) result = best[i] > result ? best[i] : result;
  return result;
}
/// Of lanes with NaN: one of them or the largest of some others.
[[gnu::always_inline]] inline float largest(f32x16 v) {
  return fold_lanes(v, LargerLanes{});
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
