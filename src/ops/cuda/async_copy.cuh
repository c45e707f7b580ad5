/// Copies to shared memory that a thread starts and later waits for. Each is one instruction on the device.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.h"

#ifndef __CUDACC__
#include <array>
#include <cstring>
#include <vector>
#endif

namespace quaver::cuda {

#ifdef __CUDACC__

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory, or zeros if not `inside`; `from` is a valid address either way.
__device__ inline void copy_16_bytes(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}

/// Waits for all copies that this thread has started.
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

#else

struct PendingCopy {
  void* to;
  const void* from;
};

/// The copies that thread `threadIdx.x` has started and not waited for.
inline std::vector<PendingCopy>& pending_copies() {
  static std::array<std::vector<PendingCopy>, 1024> of_thread;
  return of_thread[threadIdx.x];
}

/// As late as the instruction may: what is read before the wait is NaN.
__device__ inline void copy_16_bytes(void* to, const void* from, bool inside) {
  constexpr int kZero = 0, kUnknown = 0xFF;
  std::memset(to, inside ? kUnknown : kZero, 16);
  if (inside) pending_copies().push_back({to, from});
}

__device__ inline void wait_for_copies() {
  for (const PendingCopy& copy : pending_copies()) std::memcpy(copy.to, copy.from, 16);
  pending_copies().clear();
}

#endif

}  // namespace quaver::cuda
