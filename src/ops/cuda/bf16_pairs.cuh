/// Two BF16 numbers in a word, as pack_pair makes them, handled at once.
#pragma once

#include "ops/cuda/launch.h"

namespace quaver::cuda {

constexpr unsigned kMagnitudes = 0x7FFF7FFFu;
constexpr unsigned kBothInfinite = 0x7F807F80u;

#ifdef __CUDACC__

/// Of each half the larger magnitude, or a NaN if one of both is one; signs are of no use.
__device__ inline unsigned larger_magnitudes(unsigned a, unsigned b) {
  unsigned larger;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
/// The same, but of a NaN and a number the number's.
__device__ inline unsigned larger_numbers(unsigned a, unsigned b) {
  unsigned larger;
  asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
/// Of each half the smaller magnitude; of a NaN and a number, the number's.
__device__ inline unsigned smaller_magnitudes(unsigned a, unsigned b) {
  unsigned smaller;
  asm("min.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(smaller) : "r"(a), "r"(b));
  return smaller;
}

#else

// Magnitudes order like their bits, with NaN above all others.
template <typename Choose>
unsigned choose_halves(unsigned a, unsigned b, const Choose& choose) {
  a &= kMagnitudes;
  b &= kMagnitudes;
  return choose(a & 0xFFFFu, b & 0xFFFFu) | choose(a >> 16, b >> 16) << 16;
}
inline unsigned larger_magnitudes(unsigned a, unsigned b) {
  return choose_halves(a, b, [](unsigned x, unsigned y) { return x > y ? x : y; });
}
inline unsigned larger_numbers(unsigned a, unsigned b) {
  constexpr unsigned kInfinite = 0x7F80;
  return choose_halves(a, b, [](unsigned x, unsigned y) {
    if (x > kInfinite || y > kInfinite) return x < y ? x : y;
    return x > y ? x : y;
  });
}
inline unsigned smaller_magnitudes(unsigned a, unsigned b) {
  return choose_halves(a, b, [](unsigned x, unsigned y) { return x < y ? x : y; });
}

#endif

/// Whether the magnitudes of both are at most those of `limits`; a NaN's is above every number's. The subtraction borrows from no
/// other half.
__device__ inline bool both_at_most(unsigned pair, unsigned limits) {
  return (~((limits | ~kMagnitudes) - (pair & kMagnitudes)) & ~kMagnitudes) == 0;
}
__device__ inline bool holds_zero(unsigned pair) {
  return (~((pair & kMagnitudes) + kMagnitudes) & ~kMagnitudes) != 0;
}

__device__ inline float low_half(unsigned pair) {
  return __uint_as_float(pair << 16);
}
__device__ inline float high_half(unsigned pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}

}  // namespace quaver::cuda
