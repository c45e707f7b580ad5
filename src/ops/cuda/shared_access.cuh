/// Accesses to shared memory by its own addresses, which are registers of 32 bits on the device: one instruction each.
#pragma once

#include <cstring>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {

#ifdef __CUDACC__

__device__ inline Pack<bf16, 8> shared_pack(SharedAddress at) {
  Pack<bf16, 8> pack;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(pack.words[0]), "=r"(pack.words[1]), "=r"(pack.words[2]), "=r"(pack.words[3])
               : "r"(at)
               : "memory");
  return pack;
}
__device__ inline void store_shared(SharedAddress to, unsigned a, unsigned b) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(a), "r"(b) : "memory");
}
__device__ inline void store_shared(SharedAddress to, std::uint8_t byte) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"(unsigned{byte}) : "memory");
}
__device__ inline std::uint8_t read_shared_byte(SharedAddress from) {
  unsigned byte;
  asm volatile("ld.volatile.shared.u8 %0, [%1];" : "=r"(byte) : "r"(from) : "memory");
  return static_cast<std::uint8_t>(byte);
}
/// What other warps may change.
__device__ inline unsigned read_shared(SharedAddress from) {
  unsigned word;
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
__device__ inline void increment_shared(SharedAddress at) {
  asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(at) : "memory");
}

#else

inline Pack<bf16, 8> shared_pack(SharedAddress at) {
  Pack<bf16, 8> pack;
  std::memcpy(&pack, at, sizeof pack);
  return pack;
}
inline void store_shared(SharedAddress to, unsigned a, unsigned b) {
  const unsigned words[] = {a, b};
  std::memcpy(to, words, sizeof words);
}
inline void store_shared(SharedAddress to, std::uint8_t byte) {
  *to = byte;
}
inline std::uint8_t read_shared_byte(SharedAddress from) {
  return *from;
}
inline unsigned read_shared(SharedAddress from) {
  unsigned word;
  std::memcpy(&word, from, sizeof word);
  return word;
}
inline void increment_shared(SharedAddress at) {
  const unsigned word = read_shared(at) + 1;
  std::memcpy(at, &word, sizeof word);
}

#endif

/// The same address, of which the compiler no longer knows that it is a sum with a uniform register: ptxas of CUDA 13.0 gives a copy
/// with a policy an illegal descriptor for one.
__device__ inline SharedAddress opaque(SharedAddress address, int lane) {
  return __shfl_sync(kAllLanes, address, lane);
}

}  // namespace quaver::cuda
