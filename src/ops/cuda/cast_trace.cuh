/// Casts of numbers in registers to FP8, and what a cast counts: a thread its own numbers, a warp and a block theirs.
#pragma once

#include <cstdint>

#include "ops/cuda/exponential.cuh"
#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"
#include "quaver/scaling.h"

namespace quaver::cuda {

/// How a tensor is cast.
struct CastScale {
  Fp8 format = Fp8::e4m3;
  float factor = 0;
  unsigned limits = 0;  ///< twice a BF16 magnitude up to which numbers are finite and do not saturate
};
/// The limit may lie below the largest such number, never above it: the estimate is a last place lower.
__device__ inline CastScale cast_scale(Fp8 format, float factor) {
  constexpr unsigned kInfinite = 0x7F80;
  const unsigned estimate = min(__float_as_uint(largest_fp8(format) * reciprocal(factor)) >> 16, kInfinite);
  return {format, factor, estimate == 0 ? 0 : (estimate - 1) * 0x10001u};
}

/// Bits that are set where a byte of four is a zero, and where one is the largest number or beyond it: then nothing saturated, or
/// was NaN. Byte by byte: no sum of a magnitude and the addend has a carry.
struct RemarkableBytes {
  unsigned zeros = 0, largest = 0;

  template <int N>
  __device__ RemarkableBytes(Fp8 format, const unsigned (&words)[N]) {
#pragma unroll
    for (int w = 0; w < N; ++w) {
      zeros |= zero_bytes(words[w]);
      const unsigned magnitudes = words[w] & 0x7F7F7F7Fu;
      largest |= (magnitudes + (format == Fp8::e4m3 ? 0x02020202u : 0x05050505u)) & 0x80808080u;
    }
  }
  /// 0x80 where a byte is 0 or 0x80.
  __device__ static unsigned zero_bytes(unsigned bytes) {
    return ~((bytes & 0x7F7F7F7Fu) + 0x7F7F7F7Fu) & 0x80808080u;
  }
};

/// sum + 128 for every byte that is 0x80; the others are 0.
__device__ inline unsigned add_bytes(unsigned bytes, unsigned sum) {
#ifdef __CUDACC__
  return __dp4a(bytes, 0x01010101u, sum);
#else
  return sum + (bytes & 0xFF) + (bytes >> 8 & 0xFF) + (bytes >> 16 & 0xFF) + (bytes >> 24);
#endif
}

/// What a thread saw of its elements before a cast; of fewer than 65,536, two counts a number.
struct CastTrace {
  float amax = 0;
  unsigned pair_amax = 0;        ///< of words of two BF16 numbers, as larger_magnitudes has them
  unsigned zeros = 0;            ///< elements
  unsigned zero_bytes_x128 = 0;  ///< bytes: of zeros, and of what underflowed
  unsigned large = 0;            ///< saturated | NaN << 16
  unsigned infinite = 0;

  // From the numbers, not from the bytes: ptxas of CUDA 13.0 gets tests of a byte out of two converted pairs wrong.
  __device__ void count_small(Fp8 format, float x, float scaled) {
    if (x == 0) zeros += 1;
    if (x == 0 || fabsf(scaled) <= largest_rounded_to_zero(format)) zero_bytes_x128 += 128;
  }
  __device__ void count_large(Fp8 format, float x, float scaled) {
    if (fabsf(scaled) > largest_fp8(format)) large += 1;
    if (x != x) large += 1u << 16;
    if (fabsf(x) == HUGE_VALF) infinite += 1;
  }

  __device__ std::uint8_t cast(const CastScale& scale, float x) {
    amax = fmaxf(amax, fabsf(x));  // ignores NaN
    count_small(scale.format, x, x * scale.factor);
    count_large(scale.format, x, x * scale.factor);
    return fp8_byte(scale.format, x * scale.factor);
  }
  /// The same for N numbers, a multiple of 4; the first of each 4 becomes the lowest byte of a word.
  template <int N>
  __device__ void cast(Fp8 format, const float (&scales)[N], const float (&x)[N], unsigned (&words)[N / 4]) {
    float scaled[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      scaled[i] = x[i] * scales[i];
      amax = fmaxf(amax, fabsf(x[i]));
    }
    fp8_words(format, scaled, words);
    const RemarkableBytes seen(format, words);
    if (seen.zeros) {
#pragma unroll
      for (int i = 0; i < N; ++i) count_small(format, x[i], scaled[i]);
    }
    if (seen.largest) {
#pragma unroll
      for (int i = 0; i < N; ++i) count_large(format, x[i], scaled[i]);
    }
  }
  /// Of pairs, with a scale each; finds no amax.
  template <int N>
  __device__ void cast(Fp8 format, const float (&scales)[N], const Pack<bf16, N>& x,
                       unsigned (&words)[N / 4]) {
    float values[N], scaled[N];
    widen(x, values);
#pragma unroll
    for (int i = 0; i < N; ++i) scaled[i] = values[i] * scales[i];
    fp8_words(format, scaled, words);
    count_zeros(x, values, words);
    const RemarkableBytes seen(format, words);
    if (seen.largest) {
#pragma unroll
      for (int i = 0; i < N; ++i) count_large(format, values[i], scaled[i]);
    }
  }
  template <typename T, int N>
  __device__ void cast(const CastScale& scale, const Pack<T, N>& x, unsigned (&words)[N / 4]) {
    float values[N];
    widen(x, values);
    if constexpr (kPairs<T, N>) {
      cast_pairs(scale, x, values, words);
    } else {
      float scales[N];
#pragma unroll
      for (int i = 0; i < N; ++i) scales[i] = scale.factor;
      cast(scale.format, scales, values, words);
    }
  }
  /// The same of what `rounded` makes of the numbers, which is returned: both look at the largest once.
  template <typename T, int N>
  __device__ Pack<T, N> round_and_cast(const CastScale& scale, const float (&exact)[N],
                                       unsigned (&words)[N / 4]) {
    if constexpr (kPairs<T, N>) {
      Pack<T, N> x = rounded_pairs(exact);
      float values[N];
      widen(x, values);
      if (!cast_pairs(scale, x, values, words)) x = rounded_singly<T>(exact);
      return x;
    } else {
      const Pack<T, N> x = rounded<T>(exact);
      cast(scale, x, words);
      return x;
    }
  }

 private:
  template <int N>
  __device__ void count_zeros(const Pack<bf16, N>& x, const float (&values)[N],
                              const unsigned (&words)[N / 4]) {
#pragma unroll
    for (int w = 0; w < N / 4; ++w)
      zero_bytes_x128 = add_bytes(RemarkableBytes::zero_bytes(words[w]), zero_bytes_x128);

    unsigned smallest = smaller_magnitudes(x.words[0], x.words[1]);
#pragma unroll
    for (int w = 2; w < N / 2; ++w) smallest = smaller_magnitudes(smallest, x.words[w]);
    if (holds_zero(smallest)) {
#pragma unroll
      for (int i = 0; i < N; ++i) zeros += values[i] == 0 ? 1 : 0;
    }
  }
  /// Of pairs the extremes decide whether anything is counted one by one; false if so. No NaN is among them otherwise.
  template <int N>
  __device__ bool cast_pairs(const CastScale& scale, const Pack<bf16, N>& x, const float (&values)[N],
                             unsigned (&words)[N / 4]) {
    float scaled[N];
#pragma unroll
    for (int i = 0; i < N; ++i) scaled[i] = values[i] * scale.factor;
    fp8_words(scale.format, scaled, words);
    count_zeros(x, values, words);
    const unsigned largest = largest_magnitudes(x);
    if (both_at_most(largest, scale.limits)) {
      pair_amax = larger_magnitudes(pair_amax, largest);
      return true;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      amax = fmaxf(amax, fabsf(values[i]));
      count_large(scale.format, values[i], scaled[i]);
    }
    return false;
  }
};

/// What the lanes of a warp, or the threads of a block, saw together.
struct CastCounts {
  unsigned amax = 0;  ///< bits of a float that is not negative: they order like the floats
  unsigned zeros = 0, underflowed = 0;
};

/// By all lanes of a warp, all of which get the result. The rare counts are added to the running totals at once.
__device__ inline CastCounts counts_of_warp(unsigned long long* counters, const CastTrace& trace) {
  const unsigned of_pairs = trace.pair_amax & kMagnitudes;
  const float amax = fmaxf(trace.amax, fmaxf(low_half(of_pairs), high_half(of_pairs)));
  CastCounts counts{warp_largest(__float_as_uint(amax)), 0, 0};
  counts.zeros = warp_sum(trace.zeros);
  counts.underflowed = warp_sum(trace.zero_bytes_x128) / 128 - counts.zeros;
  if (__ballot_sync(kAllLanes, (trace.large | trace.infinite) != 0) == 0) return counts;
  const auto add = [&](CastCounter counter, unsigned count) {
    const unsigned sum = warp_sum(count);
    if (threadIdx.x % 32 == 0 && counters && sum)
      atomicAdd(counters + counter, static_cast<unsigned long long>(sum));
  };
  add(kCastSaturated, trace.large & 0xFFFFu);
  add(kCastNan, trace.large >> 16);
  add(kCastInfinite, trace.infinite);
  return counts;
}

/// Adds to the running totals, by one thread. `amax`: null if nobody wants it. Reading it first keeps most warps from the
/// atomics, all of which meet at one address.
__device__ inline void record_counts(float* amax, unsigned long long* counters, const CastCounts& counts) {
  if (amax && __uint_as_float(counts.amax) > *static_cast<volatile float*>(amax))
    atomicMax(reinterpret_cast<int*>(amax), static_cast<int>(counts.amax));
  if (!counters) return;
  if (counts.zeros) atomicAdd(counters + kCastZeros, static_cast<unsigned long long>(counts.zeros));
  if (counts.underflowed)
    atomicAdd(counters + kCastUnderflowed, static_cast<unsigned long long>(counts.underflowed));
}

/// What a warp saw, by all its lanes.
__device__ inline void record_warp(float* amax, unsigned long long* counters, const CastTrace& trace) {
  const CastCounts counts = counts_of_warp(counters, trace);
  if (threadIdx.x % 32 == 0) record_counts(amax, counters, counts);
}

/// What a block's warps saw, in shared memory.
template <int kWarps>
struct BlockCounts {
  CastCounts of_warp[kWarps];

  /// By all threads; then a barrier.
  __device__ void leave(unsigned long long* counters, const CastTrace& trace) {
    const CastCounts counts = counts_of_warp(counters, trace);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = counts;
  }
  /// By all lanes of one warp.
  __device__ void record(float* amax, unsigned long long* counters) const {
    const unsigned lane = threadIdx.x % 32;
    const CastCounts counts = lane < kWarps ? of_warp[lane] : CastCounts{};
    const CastCounts all{warp_largest(counts.amax), warp_sum(counts.zeros), warp_sum(counts.underflowed)};
    if (lane == 0) record_counts(amax, counters, all);
  }
};

}  // namespace quaver::cuda
