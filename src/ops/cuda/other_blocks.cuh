/// What blocks that run at the same time tell each other through memory, without a barrier: tickets, and pairs of numbers that are missing
/// until somebody has stored them. A pair tells of nothing but itself, so no fence is needed.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/cuda/launch.h"

namespace quaver::cuda {

/// The bits of a number that is not there yet: a NaN that no operation returns.
constexpr unsigned kMissing = 0xFFFFFFFFu;

#ifdef __CUDACC__

/// Looks until condition() holds, every kPause nanoseconds.
template <unsigned kPause, typename Condition>
__device__ void wait_until(const Condition& condition) {
  while (!condition()) {
    if constexpr (kPause > 0) __nanosleep(kPause);
  }
}

/// How many were drawn before: `from` begins as kMissing. Not an addition: around one by a single lane ptxas gathers the warp's, and has
/// it wait for the result at once.
__device__ inline unsigned draw_ticket(unsigned* from) {
  unsigned before;
  asm volatile("atom.global.inc.u32 %0, [%1], 0x7FFFFFFF;" : "=r"(before) : "l"(from) : "memory");
  return before + 1;
}

/// Both numbers of a pair are there, or none.
template <typename T>
__device__ T look_at(const T* from) {
  static_assert(sizeof(T) == 8);
  std::uint64_t bits;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(bits) : "l"(from) : "memory");
  T numbers;
  std::memcpy(&numbers, &bits, sizeof bits);
  return numbers;
}
template <typename T>
__device__ void show(T* to, const T& numbers) {
  static_assert(sizeof(T) == 8);
  std::uint64_t bits;
  std::memcpy(&bits, &numbers, sizeof bits);
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(bits) : "memory");
}

#else

template <unsigned, typename Condition>
void wait_until(const Condition& condition) {
  emulation::wait_until(condition);
}
inline unsigned draw_ticket(unsigned* from) {
  return *from = *from >= 0x7FFFFFFFu ? 0 : *from + 1;
}
template <typename T>
T look_at(const T* from) {
  return *from;
}
template <typename T>
void show(T* to, const T& numbers) {
  *to = numbers;
}

#endif

__device__ inline bool is_missing(float number) {
  return __float_as_uint(number) == kMissing;
}
/// A warp's tickets of one counter, each drawn while the work of the one before is done.
struct Tickets {
  unsigned* from;
  int lane;
  unsigned next = 0;  ///< lane 0's

  __device__ void draw() {
    if (lane == 0) next = draw_ticket(from);
  }
  /// The same in all lanes; `draw` comes first, once.
  __device__ int take() {
    const int ticket = static_cast<int>(__shfl_sync(kAllLanes, next, 0));
    draw();
    return ticket;
  }
};

/// A number whose bits are not those of kMissing.
__device__ inline float as_present(float number) {
  return number == number ? number : __uint_as_float(0x7FC00000u);
}

}  // namespace quaver::cuda
