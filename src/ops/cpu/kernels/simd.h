/// Vectors of 16 lanes for kernels, with the same bits at every instruction-set level: each operation is one
/// IEEE operation per lane, nothing is fused but by fused_multiply_add (the build says -ffp-contract=off), and
/// horizontal sums have one fixed order.
///
/// For kernel files only. Everything is in an anonymous namespace and inlined, so that code compiled for one
/// level never serves another.
#pragma once

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
typedef std::uint16_t NativeU16 __attribute__((vector_size(kNativeLanes * 2)));
typedef std::uint8_t NativeU8 __attribute__((vector_size(kNativeLanes)));

// Arrays of native vectors, not one 64-byte vector: g++ takes comparisons and selections of vectors wider
// than the registers apart into scalars.
struct f32x16 {
  NativeF32 part[kParts];
};
/// Also masks: a lane is all ones (true) or all zeros (false).
struct i32x16 {
  NativeI32 part[kParts];
};

/// Lanes of a load or store: all 16, or the first `count` (of a row's tail; the rest is loaded as zeros).
struct Full {};
struct Tail {
  int count;
};
constexpr int lanes_in(Full) {
  return kLanes;
}
constexpr int lanes_in(Tail tail) {
  return tail.count;
}

/// The upper half of an FP32 number (quaver::bf16 without its header).
struct Bf16 {
  std::uint16_t bits;
};

[[gnu::always_inline]] inline float to_f32(float x) {
  return x;
}
[[gnu::always_inline]] inline float to_f32(Bf16 x) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(x.bits) << 16);
}

template <typename V, typename F>
[[gnu::always_inline]] inline V for_parts(F part_of) {
  V r;
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) r.part[p] = part_of(p);
  return r;
}

[[gnu::always_inline]] inline f32x16 f32s(float x) {
  return for_parts<f32x16>([&](int) { return NativeF32{} + x; });
}
[[gnu::always_inline]] inline i32x16 i32s(std::int32_t x) {
  return for_parts<i32x16>([&](int) { return NativeI32{} + x; });
}

// ---- arithmetic and comparisons, lane by lane ----

[[gnu::always_inline]] inline f32x16 operator+(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) { return a.part[p] + b.part[p]; });
}
[[gnu::always_inline]] inline f32x16 operator-(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) { return a.part[p] - b.part[p]; });
}
[[gnu::always_inline]] inline f32x16 operator-(f32x16 a) {
  return for_parts<f32x16>([&](int p) { return -a.part[p]; });
}
[[gnu::always_inline]] inline f32x16 operator*(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) { return a.part[p] * b.part[p]; });
}
[[gnu::always_inline]] inline f32x16 operator/(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) { return a.part[p] / b.part[p]; });
}
[[gnu::always_inline]] inline f32x16 operator+(f32x16 a, float b) {
  return a + f32s(b);
}
[[gnu::always_inline]] inline f32x16 operator-(f32x16 a, float b) {
  return a - f32s(b);
}
[[gnu::always_inline]] inline f32x16 operator-(float a, f32x16 b) {
  return f32s(a) - b;
}
[[gnu::always_inline]] inline f32x16 operator*(f32x16 a, float b) {
  return a * f32s(b);
}
[[gnu::always_inline]] inline f32x16 operator*(float a, f32x16 b) {
  return f32s(a) * b;
}
[[gnu::always_inline]] inline f32x16 operator/(float a, f32x16 b) {
  return f32s(a) / b;
}
[[gnu::always_inline]] inline f32x16 operator+(float a, f32x16 b) {
  return f32s(a) + b;
}
[[gnu::always_inline]] inline f32x16& operator+=(f32x16& a, f32x16 b) {
  return a = a + b;
}

[[gnu::always_inline]] inline i32x16 operator+(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] + b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator-(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] - b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator&(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] & b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator|(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] | b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator<<(i32x16 a, int n) {
  return for_parts<i32x16>([&](int p) { return a.part[p] << n; });
}
/// Arithmetic shift.
[[gnu::always_inline]] inline i32x16 operator>>(i32x16 a, int n) {
  return for_parts<i32x16>([&](int p) { return a.part[p] >> n; });
}
[[gnu::always_inline]] inline i32x16& operator+=(i32x16& a, i32x16 b) {
  return a = a + b;
}
[[gnu::always_inline]] inline i32x16& operator-=(i32x16& a, i32x16 b) {
  return a = a - b;
}

/// Masks; a comparison with NaN is false.
[[gnu::always_inline]] inline i32x16 operator>(f32x16 a, f32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] > b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator>(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] > b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 operator==(i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return a.part[p] == b.part[p]; });
}

[[gnu::always_inline]] inline f32x16 select(i32x16 mask, f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) { return mask.part[p] ? a.part[p] : b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 select(i32x16 mask, i32x16 a, i32x16 b) {
  return for_parts<i32x16>([&](int p) { return mask.part[p] ? a.part[p] : b.part[p]; });
}
[[gnu::always_inline]] inline i32x16 max(i32x16 a, i32x16 b) {
  return select(a > b, a, b);
}
[[gnu::always_inline]] inline i32x16 min(i32x16 a, i32x16 b) {
  return select(a > b, b, a);
}
/// The second operand where either is NaN.
[[gnu::always_inline]] inline f32x16 max(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_maskz_max_ps(0xFFFF, reinterpret_cast<__m512>(a.part[p]),
                                                           reinterpret_cast<__m512>(b.part[p])));
#else
    return a.part[p] > b.part[p] ? a.part[p] : b.part[p];
#endif
  });
}

/// The second operand where either is NaN.
[[gnu::always_inline]] inline f32x16 min(f32x16 a, f32x16 b) {
  return for_parts<f32x16>([&](int p) {
#if defined(__AVX512F__)
    return reinterpret_cast<NativeF32>(_mm512_maskz_min_ps(0xFFFF, reinterpret_cast<__m512>(a.part[p]),
                                                           reinterpret_cast<__m512>(b.part[p])));
#else
    return b.part[p] > a.part[p] ? a.part[p] : b.part[p];
#endif
  });
}

/// The bits of floats as integers, and back.
[[gnu::always_inline]] inline i32x16 bits_of(f32x16 a) {
  return for_parts<i32x16>([&](int p) { return reinterpret_cast<NativeI32>(a.part[p]); });
}
[[gnu::always_inline]] inline f32x16 float_of_bits(i32x16 a) {
  return for_parts<f32x16>([&](int p) { return reinterpret_cast<NativeF32>(a.part[p]); });
}

/// Correctly rounded.
[[gnu::always_inline]] inline f32x16 sqrt(f32x16 a) {
  return for_parts<f32x16>([&](int p) {
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
[[gnu::always_inline]] inline f32x16 fused_multiply_add(f32x16 a, f32x16 b, f32x16 c) {
  return for_parts<f32x16>([&](int p) {
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
[[gnu::always_inline]] inline f32x16 fused_multiply_add(f32x16 a, float b, f32x16 c) {
  return fused_multiply_add(a, f32s(b), c);
}
[[gnu::always_inline]] inline f32x16 fused_multiply_add(f32x16 a, float b, float c) {
  return fused_multiply_add(a, f32s(b), f32s(c));
}

// ---- memory; any alignment ----

// Typed accesses without alignment: g++ splits a memcpy of 32 bytes into pieces.
template <typename V>
struct [[gnu::packed, gnu::may_alias]] Unaligned {
  V value;
};
template <typename V>
[[gnu::always_inline]] inline V load_native(const void* from) {
  return static_cast<const Unaligned<V>*>(from)->value;
}
template <typename V>
[[gnu::always_inline]] inline void store_native(V v, void* to) {
  static_cast<Unaligned<V>*>(to)->value = v;
}

[[gnu::always_inline]] inline f32x16 load(const float* from, Full) {
  return for_parts<f32x16>([&](int p) { return load_native<NativeF32>(from + p * kNativeLanes); });
}

/// g++ 12 makes six instructions of a __builtin_convertvector that widens to 64 bytes.
[[gnu::always_inline]] inline NativeI32 widened(NativeU16 half) {
#if defined(__AVX512F__)
  return reinterpret_cast<NativeI32>(_mm512_maskz_cvtepu16_epi32(0xFFFF, reinterpret_cast<__m256i>(half)));
#elif defined(__AVX2__)
  return reinterpret_cast<NativeI32>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half)));
#else
  return __builtin_convertvector(half, NativeI32);
#endif
}

[[gnu::always_inline]] inline f32x16 load(const Bf16* from, Full) {
  return for_parts<f32x16>([&](int p) {
    const NativeU16 half = load_native<NativeU16>(from + p * kNativeLanes);
    return reinterpret_cast<NativeF32>(widened(half) << 16);
  });
}

template <typename T>
[[gnu::always_inline]] inline f32x16 load(const T* from, Tail tail) {
  T buffer[kLanes] = {};
  for (int i = 0; i < tail.count; ++i) buffer[i] = from[i];
  return load(buffer, Full{});
}

[[gnu::always_inline]] inline void store(f32x16 v, float* to, Full) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) store_native(v.part[p], to + p * kNativeLanes);
}

/// FP32 bits whose upper half is the BF16 value: rounded to nearest, ties to even, denormals kept, NaN to
/// 0x7FC0.
[[gnu::always_inline]] inline i32x16 bf16_bits(f32x16 v) {
  const i32x16 bits = bits_of(v);
  const i32x16 rounded = bits + i32s(0x7FFF) + ((bits >> 16) & i32s(1));
  const i32x16 nan = (bits & i32s(0x7FFFFFFF)) > i32s(0x7F800000);
  return select(nan, i32s(0x7FC00000), rounded);
}

#if defined(__AVX512BF16__)
/// Lanes that vcvtneps2bf16 treats in its own way: it flushes denormals and keeps NaN's payloads.
[[gnu::always_inline]] inline bool suits_native_bf16(f32x16 v) {
  constexpr int kQuietNan = 0x01, kDenormal = 0x20, kSignallingNan = 0x80;
  const auto native = reinterpret_cast<__m512>(v.part[0]);
  return __builtin_expect(_mm512_fpclass_ps_mask(native, kQuietNan | kDenormal | kSignallingNan) == 0, 1);
}
#endif

[[gnu::always_inline]] inline void store(f32x16 v, Bf16* to, Full) {
#if defined(__AVX512BF16__)
  if (suits_native_bf16(v)) {
    const auto halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v.part[0]));
    store_native(reinterpret_cast<NativeU16>(halves), to);
    return;
  }
#endif
  const i32x16 bits = bf16_bits(v);
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
    store_native(__builtin_convertvector(bits.part[p] >> 16, NativeU16), to + p * kNativeLanes);
  }
}

[[gnu::always_inline]] inline void store(i32x16 v, std::int32_t* to, Full) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) store_native(v.part[p], to + p * kNativeLanes);
}

/// The low bytes of the lanes.
[[gnu::always_inline]] inline void store(i32x16 v, std::uint8_t* to, Full) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
    store_native(__builtin_convertvector(v.part[p], NativeU8), to + p * kNativeLanes);
  }
}

template <typename V, typename T>
[[gnu::always_inline]] inline void store(V v, T* to, Tail tail) {
  T buffer[kLanes];
  store(v, buffer, Full{});
  for (int i = 0; i < tail.count; ++i) to[i] = buffer[i];
}

/// The value after a store as T and a load.
[[gnu::always_inline]] inline f32x16 rounded_to(f32x16 v, const float*) {
  return v;
}
[[gnu::always_inline]] inline f32x16 rounded_to(f32x16 v, const Bf16*) {
  return float_of_bits(bf16_bits(v) & i32s(static_cast<std::int32_t>(0xFFFF0000)));
}

/// The lanes that a load or store touches, with `fill` in the others.
[[gnu::always_inline]] inline f32x16 pad(f32x16 v, Full, float) {
  return v;
}
[[gnu::always_inline]] inline f32x16 pad(f32x16 v, Tail tail, float fill) {
  float lanes[kLanes];
  store(v, lanes, Full{});
  for (int i = tail.count; i < kLanes; ++i) lanes[i] = fill;
  return load(lanes, Full{});
}

/// How many lanes `pad` fills.
[[gnu::always_inline]] inline int padded(Full) {
  return 0;
}
[[gnu::always_inline]] inline int padded(Tail tail) {
  return kLanes - tail.count;
}

/// For functions marked [[gnu::flatten]]: g++ does not inline a large body that is called twice. body(column,
/// lanes) over [0, count) in ascending order: whole vectors, then the tail.
template <typename F>
[[gnu::always_inline]] inline void for_vectors(std::int64_t count, F body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Full{});
  if (i < count) body(i, Tail{static_cast<int>(count - i)});
}

// ---- across lanes ----

/// Adds lane i + 8 to lane i, then i + 4, i + 2, i + 1.
[[gnu::always_inline]] inline float sum(f32x16 v) {
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512>(v.part[0]);
  const __m256 eight =
      _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xFF, all, 0), _mm512_maskz_extractf32x8_ps(0xFF, all, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[kLanes];
  store(v, lanes, Full{});
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
#endif
}
[[gnu::always_inline]] inline std::int64_t sum(i32x16 v) {
  std::int32_t lanes[kLanes];
  store(v, lanes, Full{});
  std::int64_t total = 0;
  for (std::int32_t lane : lanes) total += lane;
  return total;
}
[[gnu::always_inline]] inline std::int32_t largest(i32x16 v) {
  std::int32_t lanes[kLanes];
  store(v, lanes, Full{});
  std::int32_t best = lanes[0];
  for (std::int32_t lane : lanes) best = lane > best ? lane : best;
  return best;
}
/// No lane may be NaN.
[[gnu::always_inline]] inline float largest(f32x16 v) {
  float lanes[kLanes];
  store(v, lanes, Full{});
  float best = lanes[0];
  for (float lane : lanes) best = lane > best ? lane : best;
  return best;
}

// ---- functions ----

/// e^x, relative error below 2e-7 + 1.4e-8 |x| (log2 e is one FP32 number), denormal results included; exp(-inf) = 0,
/// overflow to inf, NaN for NaN.
[[gnu::always_inline]] inline f32x16 exp(f32x16 x) {
  // Beyond these bounds the result is 0 or inf anyway. NaN fails both comparisons and stays.
  x = max(f32s(-104.0f), min(f32s(89.0f), x));
  // x log2(e) = n + r, n = round(x log2(e)): adding 1.5 * 2^23 leaves it in the low bits of the mantissa.
  const f32x16 shifted = fused_multiply_add(x, 1.44269504f, 12582912.0f);
  const f32x16 n_float = shifted - 12582912.0f;
  const f32x16 r = fused_multiply_add(x, f32s(1.44269504f), -n_float);
  // 2^r on |r| <= 1/2 within 9.2e-8 of itself, exact at 0; summed in pairs: a short chain.
  const f32x16 r2 = r * r;
  const f32x16 high = fused_multiply_add(r, 1.32647273e-3f, 9.67151299e-3f);
  const f32x16 middle = fused_multiply_add(r, 5.55073358e-2f, 2.40222424e-1f);
  const f32x16 low = fused_multiply_add(r, 6.93147004e-1f, 1.0f);
  const f32x16 e = fused_multiply_add(fused_multiply_add(high, r2, middle), r2, low);
#if defined(__AVX512F__)
  return {reinterpret_cast<NativeF32>(_mm512_maskz_scalef_ps(0xFFFF, reinterpret_cast<__m512>(e.part[0]),
                                                             reinterpret_cast<__m512>(n_float.part[0])))};
#else
  // e * 2^n in two steps: neither factor overflows, and only the last product can round.
  const i32x16 n = bits_of(shifted) - i32s(0x4B400000);
  const i32x16 half = n >> 1;
  const f32x16 first = float_of_bits((half + i32s(127)) << 23);
  const f32x16 second = float_of_bits((n - half + i32s(127)) << 23);
  return (e * first) * second;
#endif
}

/// 1 / (1 + e^-x).
[[gnu::always_inline]] inline f32x16 sigmoid(f32x16 x) {
  return 1.0f / (1.0f + exp(-x));
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
