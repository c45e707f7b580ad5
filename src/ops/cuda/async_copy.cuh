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

/// How long the second-level cache should keep what a copy reads.
enum class Keep { longest, no_longer };

#ifdef __CUDACC__

using SharedAddress = std::uint32_t;

__device__ inline SharedAddress shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory, or zeros if not `inside`; `from` is a valid address either way.
__device__ inline void copy_16_bytes(void* to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
/// `policy`: of cache_policy.
__device__ inline void copy_16_bytes(SharedAddress to, const void* from, bool inside, std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0), "l"(policy)
               : "memory");
}
__device__ inline std::uint64_t cache_policy(Keep keep) {
  std::uint64_t policy;
  if (keep == Keep::longest) {
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  }
  return policy;
}

/// Waits for all copies that this thread has started.
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
/// Copies started since the last call become one group.
__device__ inline void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits for all groups but the last kLeft.
template <int kLeft>
__device__ void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#else

using SharedAddress = unsigned char*;

inline SharedAddress shared_address(void* pointer) {
  return static_cast<SharedAddress>(pointer);
}

struct PendingCopy {
  void* to;
  const void* from;
};
struct PendingCopies {
  std::vector<PendingCopy> copies;
  std::vector<std::size_t> group_ends;  // places in `copies`

  void finish(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) std::memcpy(copies[i].to, copies[i].from, 16);
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(count));
  }
};

/// What thread `threadIdx.x` has started and not waited for.
inline PendingCopies& pending_copies() {
  static std::array<PendingCopies, 1024> of_thread;
  return of_thread[threadIdx.x];
}

/// As late as the instruction may: what is read before the wait is NaN.
__device__ inline void copy_16_bytes(void* to, const void* from, bool inside) {
  constexpr int kZero = 0, kUnknown = 0xFF;
  std::memset(to, inside ? kUnknown : kZero, 16);
  if (inside) pending_copies().copies.push_back({to, from});
}
__device__ inline void copy_16_bytes(SharedAddress to, const void* from, bool inside, std::uint64_t) {
  copy_16_bytes(to, from, inside);
}
__device__ inline std::uint64_t cache_policy(Keep) {
  return 0;
}

__device__ inline void wait_for_copies() {
  PendingCopies& pending = pending_copies();
  pending.finish(pending.copies.size());
  pending.group_ends.clear();
}
__device__ inline void end_copies() {
  PendingCopies& pending = pending_copies();
  pending.group_ends.push_back(pending.copies.size());
}
template <int kLeft>
__device__ void wait_for_copies_but() {
  PendingCopies& pending = pending_copies();
  std::vector<std::size_t>& ends = pending.group_ends;
  if (ends.size() <= kLeft) return;
  const auto over = ends.end() - kLeft;
  const std::size_t count = *(over - 1);
  pending.finish(count);
  ends.erase(ends.begin(), over);
  for (std::size_t& end : ends) end -= count;
}

#endif

}  // namespace quaver::cuda
