/// Sums and maxima over the threads of a warp or block, in an order that only the number of threads
/// determines.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.h"

namespace quaver::cuda {

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// Every lane gets the result.
template <typename T, typename Combine>
__device__ T warp_reduce(T value, const Combine& combine) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// Of numbers without a sign; one instruction of chips since sm_80. Every lane gets the result.
__device__ inline unsigned warp_sum(unsigned value) {
#ifdef __CUDACC__
  return __reduce_add_sync(kAllLanes, value);
#else
  return warp_reduce(value, Add{});
#endif
}
__device__ inline unsigned warp_largest(unsigned value) {
#ifdef __CUDACC__
  return __reduce_max_sync(kAllLanes, value);
#else
  return warp_reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
#endif
}

/// Over groups of `lanes` lanes, a power of two; every lane gets its group's result. By all lanes of a warp.
template <typename T, typename Combine>
__device__ T group_reduce(T value, int lanes, const Combine& combine) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

/// Which of kValues numbers a lane has after reduce_numbers.
template <int kLanes, int kValues>
__device__ int number_of_lane(int lane) {
  int number = 0;
#pragma unroll
  for (int bit = 1, distance = kLanes / 2; bit < kValues; bit *= 2, distance /= 2)
    number |= (lane & distance) ? bit : 0;
  return number;
}
/// kValues numbers (a power of two, at most kLanes) over groups of kLanes lanes at once: lanes at a distance exchange halves of what they
/// have. By all lanes of a warp; takes `values` apart.
template <int kLanes, int kValues, typename Combine>
__device__ float reduce_numbers(float (&values)[kValues], const Combine& combine) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int distance = kLanes / 2;
#pragma unroll
  for (int left = kValues / 2; left > 0; left /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float sent = upper ? values[2 * i] : values[2 * i + 1];
      const float kept = upper ? values[2 * i + 1] : values[2 * i];
      values[i] = combine(kept, __shfl_xor_sync(kAllLanes, sent, distance));
    }
  }
  float result = values[0];
#pragma unroll
  for (int rest = kLanes / 2 / kValues; rest > 0; rest /= 2)
    result = combine(result, __shfl_xor_sync(kAllLanes, result, rest));
  return result;
}

/// The lanes of a group that takes `packs` packs, one each if there are no more than a warp's.
constexpr int lanes_for(std::int64_t packs) {
  int lanes = 1;
  while (lanes < 32 && lanes < packs) lanes *= 2;
  return lanes;
}

/// Over a block of kThreads (a multiple of 32, a one-dimensional block); every thread gets the result. Called
/// by all threads of the block.
template <int kThreads, typename T, typename Combine>
__device__ T block_reduce(T value, const Combine& combine) {
  __shared__ T of_warp[kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  value = warp_reduce(value, combine);
  __syncthreads();  // the previous reduction has been read
  if (thread % 32 == 0) of_warp[thread / 32] = value;
  __syncthreads();
  T result = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) result = combine(result, of_warp[warp]);
  return result;
}

}  // namespace quaver::cuda
