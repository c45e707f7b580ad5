/// Loads and stores of vectors (simd.h): FP32, BF16 and the tails of rows; any alignment. For kernel files only.
#pragma once

#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

typedef std::uint16_t NativeU16 __attribute__((vector_size(kNativeLanes * 2)));
typedef std::uint8_t NativeU8 __attribute__((vector_size(kNativeLanes)));

/// Lanes of a load or store: those of N vectors, or the first `count` of one (of a row's tail; the rest is loaded as zeros).
template <int N>
struct Whole {};
using Full = Whole<1>;
struct Tail {
  int count;
};
template <int N>
constexpr int lanes_in(Whole<N>) {
  return N * kLanes;
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

template <int N>
[[gnu::always_inline]] inline F32<N> load(const float* from, Whole<N>) {
  return for_parts<F32<N>>([&](int p) { return load_native<NativeF32>(from + p * kNativeLanes); });
}

#if defined(__AVX512F__)
typedef std::int16_t Words __attribute__((vector_size(64)));

/// 16 BF16 numbers from the `first`th on of 32, each into the upper half of a lane: one permutation in place of a widening
/// and a shift.
template <int first>
[[gnu::always_inline]] inline NativeF32 spread(__m512i halves) {
  constexpr Words kOrder = {0, first,      0, first + 1,  0, first + 2,  0, first + 3,
                            0, first + 4,  0, first + 5,  0, first + 6,  0, first + 7,
                            0, first + 8,  0, first + 9,  0, first + 10, 0, first + 11,
                            0, first + 12, 0, first + 13, 0, first + 14, 0, first + 15};
  return reinterpret_cast<NativeF32>(
      _mm512_maskz_permutexvar_epi16(0xAAAAAAAA, reinterpret_cast<__m512i>(kOrder), halves));
}
#else
[[gnu::always_inline]] inline NativeI32 widened(NativeU16 half) {
#if defined(__AVX2__)
  return reinterpret_cast<NativeI32>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(half)));
#else
  return __builtin_convertvector(half, NativeI32);
#endif
}
#endif

template <int N>
[[gnu::always_inline]] inline F32<N> load(const Bf16* from, Whole<N>) {
#if defined(__AVX512F__)
  F32<N> r;
#pragma GCC unroll 8
  for (int p = 0; p + 2 <= N; p += 2) {
    const __m512i halves = _mm512_loadu_si512(from + p * kLanes);
    r.part[p] = spread<0>(halves);
    r.part[p + 1] = spread<16>(halves);
  }
  if constexpr (N % 2 != 0) {
    const auto* last = reinterpret_cast<const __m256i*>(from + (N - 1) * kLanes);
    r.part[N - 1] = spread<0>(_mm512_castsi256_si512(_mm256_loadu_si256(last)));
  }
  return r;
#else
  return for_parts<F32<N>>([&](int p) {
    const NativeU16 half = load_native<NativeU16>(from + p * kNativeLanes);
    return reinterpret_cast<NativeF32>(widened(half) << 16);
  });
#endif
}

template <typename T>
[[gnu::always_inline]] inline f32x16 load(const T* from, Tail tail) {
  T buffer[kLanes] = {};
  for (int i = 0; i < tail.count; ++i) buffer[i] = from[i];
  return load(buffer, Full{});
}

template <int N>
[[gnu::always_inline]] inline void store(F32<N> v, float* to, Whole<N>) {
#pragma GCC unroll 16
  for (int p = 0; p < N * kParts; ++p) store_native(v.part[p], to + p * kNativeLanes);
}

/// FP32 bits whose upper half is the BF16 value: rounded to nearest, ties to even, denormals kept, NaN to
/// 0x7FC0.
template <int N>
[[gnu::always_inline]] inline I32<N> bf16_bits(F32<N> v) {
  const I32<N> bits = bits_of(v);
  const I32<N> rounded = bits + i32s<N>(0x7FFF) + ((bits >> 16) & i32s<N>(1));
  const I32<N> nan = (bits & i32s<N>(0x7FFFFFFF)) > i32s<N>(0x7F800000);
  return select(nan, i32s<N>(0x7FC00000), rounded);
}

#if defined(__AVX512BF16__)
/// False if a lane is one that vcvtneps2bf16 treats in its own way: it flushes denormals and keeps NaN's payloads.
template <int N>
[[gnu::always_inline]] inline bool suits_native_bf16(F32<N> v) {
  constexpr int kQuietNan = 0x01, kDenormal = 0x20, kSignallingNan = 0x80;
  __mmask16 special = 0;
#pragma GCC unroll 16
  for (int p = 0; p < N; ++p) {
    special |=
        _mm512_fpclass_ps_mask(reinterpret_cast<__m512>(v.part[p]), kQuietNan | kDenormal | kSignallingNan);
  }
  return __builtin_expect(special == 0, 1);
}
#endif

template <int N>
[[gnu::always_inline]] inline void store(F32<N> v, Bf16* to, Whole<N>) {
#if defined(__AVX512BF16__)
  if (suits_native_bf16(v)) {
#pragma GCC unroll 16
    for (int p = 0; p < N; ++p) {
      const auto halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v.part[p]));
      store_native(reinterpret_cast<NativeU16>(halves), to + p * kNativeLanes);
    }
    return;
  }
#endif
  const I32<N> bits = bf16_bits(v);
#pragma GCC unroll 16
  for (int p = 0; p < N * kParts; ++p) {
    store_native(__builtin_convertvector(bits.part[p] >> 16, NativeU16), to + p * kNativeLanes);
  }
}

[[gnu::always_inline]] inline void store(i32x16 v, std::int32_t* to, Full) {
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) store_native(v.part[p], to + p * kNativeLanes);
}

/// The low bytes of the lanes.
[[gnu::always_inline]] inline void store(i32x16 v, std::uint8_t* to, Full) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // g++ 12 takes the lanes of a conversion to bytes out one by one.
  const i32x16 low = v & i32s(0xFF);
  const __m256i words =
      _mm256_packs_epi32(reinterpret_cast<__m256i>(low.part[0]), reinterpret_cast<__m256i>(low.part[1]));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi32(bytes, _MM_SHUFFLE(3, 1, 2, 0)));
#else
#pragma GCC unroll 4
  for (int p = 0; p < kParts; ++p) {
    store_native(__builtin_convertvector(v.part[p], NativeU8), to + p * kNativeLanes);
  }
#endif
}

template <typename V, typename T>
[[gnu::always_inline]] inline void store(V v, T* to, Tail tail) {
  T buffer[kLanes];
  store(v, buffer, Full{});
  for (int i = 0; i < tail.count; ++i) to[i] = buffer[i];
}

/// The value after a store as T and a load.
template <int N>
[[gnu::always_inline]] inline F32<N> rounded_to(F32<N> v, const float*) {
  return v;
}
template <int N>
[[gnu::always_inline]] inline F32<N> rounded_to(F32<N> v, const Bf16*) {
  return float_of_bits(bf16_bits(v) & i32s<N>(static_cast<std::int32_t>(0xFFFF0000)));
}

/// The lanes that a load or store touches, with `fill` in the others.
template <int N>
[[gnu::always_inline]] inline F32<N> pad(F32<N> v, Whole<N>, float) {
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

/// How far ahead of a long chain of arithmetic its operands are fetched: the chain fills the window in which a processor looks for
/// further loads, and its own prefetcher falls behind while results are encoded.
constexpr std::int64_t kFetchedBytes = 4096;

/// Fetches what comes kFetchedBytes after a load of these lanes.
template <typename T, typename Lanes>
[[gnu::always_inline]] inline void fetch_ahead(const T* from, Lanes lanes) {
  const char* begin = reinterpret_cast<const char*>(from) + kFetchedBytes;
  const char* end = begin + lanes_in(lanes) * static_cast<int>(sizeof(T));
  for (const char* line = begin; line < end; line += 64) __builtin_prefetch(line);
}

// For functions marked [[gnu::flatten]], with bodies marked always_inline: g++ does not inline a large body that is called for
// several kinds of lanes, and a call keeps no constant in a register.

/// body(column, lanes) over [0, count) in ascending order: whole vectors, then the tail.
template <typename F>
[[gnu::always_inline]] inline void for_vectors(std::int64_t count, F body) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, Full{});
  if (i < count) body(i, Tail{static_cast<int>(count - i)});
}

/// The same, first N vectors at once.
template <int N, typename F>
[[gnu::always_inline]] inline void for_blocks(std::int64_t count, F body) {
  const std::int64_t whole = count / (N * kLanes) * (N * kLanes);
  for (std::int64_t i = 0; i < whole; i += N * kLanes) body(i, Whole<N>{});
  for_vectors(count - whole, [&](std::int64_t i, auto lanes) { body(whole + i, lanes); });
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
