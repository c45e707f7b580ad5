/// CUDA's spelling for the host: see src/ops/cuda/launch.h, the only file that includes this one.
///
/// One host thread runs everything: the block's threads are fibers, resumed in turn until each waits or ends.
/// Dynamic shared memory starts as 0xFF bytes (NaN), so that reading what nobody wrote shows. A block whose
/// threads all wait, or a warp operation that some lanes never reach, is an Error that names the kernel.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one after another
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  template <typename X, typename Y = unsigned, typename Z = unsigned>
  dim3(X x_, Y y_ = 1, Z z_ = 1)  // NOLINT(google-explicit-constructor): as CUDA's
      : x(static_cast<unsigned>(x_)), y(static_cast<unsigned>(y_)), z(static_cast<unsigned>(z_)) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

// The running thread's: set whenever a fiber is resumed.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace quaver::emulation {

/// Runs `kernel` once per thread of every block.
void run(const char* name, dim3 blocks, dim3 threads, std::size_t shared_bytes,
         const std::function<void()>& kernel);

void* dynamic_shared_memory();
void wait_for_block();
/// Lets other threads run until `condition` holds; they may change what it reads.
void wait_until(const std::function<bool()>& condition);

constexpr int kLanes = 32;
/// Publishes the address of this lane's operand and waits until all lanes of the warp did.
const std::array<const void*, kLanes>& meet_warp(const void* operand);
/// Waits until all lanes of the warp have come here: their operands may then die.
void leave_warp();
int lane();

/// f(operands of all lanes), computed by each lane for itself: f takes const T* const* and returns this
/// lane's result.
template <typename T, typename F>
auto with_warp(const T& operand, const F& f) {
  const auto& addresses = meet_warp(&operand);
  const T* operands[kLanes];
  for (int i = 0; i < kLanes; ++i) operands[i] = static_cast<const T*>(addresses[i]);
  auto result = f(static_cast<const T* const*>(operands));
  leave_warp();
  return result;
}

}  // namespace quaver::emulation

inline void __syncthreads() {
  quaver::emulation::wait_for_block();
}
inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
  quaver::emulation::with_warp(0, [](auto) { return 0; });
}
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return quaver::emulation::with_warp(value, [&](const T* const* all) { return *all[from & 31]; });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return __shfl_sync(mask, value, quaver::emulation::lane() ^ distance);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const int from = quaver::emulation::lane() + static_cast<int>(distance);
  return __shfl_sync(mask, value, from < 32 ? from : quaver::emulation::lane());
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const int from = quaver::emulation::lane() - static_cast<int>(distance);
  return __shfl_sync(mask, value, from >= 0 ? from : quaver::emulation::lane());
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return quaver::emulation::with_warp(predicate, [](const int* const* all) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(*all[i] != 0) << i;
    return votes;
  });
}

template <typename T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <typename T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}

inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
