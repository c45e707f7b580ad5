/// Powers of two and of e for vectors (simd.h). For kernel files only.
#pragma once

#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// 2^r for |r| <= 1/2 within 9.2e-8 of itself, exact at 0. Without instructions for fused operations it is 80 calls for a vector,
/// which every formula would repeat.
template <int N>
#if defined(__FP_FAST_FMAF)
[[gnu::always_inline]]
#else
[[gnu::noinline]]
#endif
inline F32<N>
power_of_fraction(F32<N> r) {
  F32<N> p = fused_multiply_add(r, 1.32647273e-3f, 9.67151299e-3f);
  p = fused_multiply_add(p, r, f32s<N>(5.55073358e-2f));
  p = fused_multiply_add(p, r, f32s<N>(2.40222424e-1f));
  p = fused_multiply_add(p, r, f32s<N>(6.93147004e-1f));
  return fused_multiply_add(p, r, f32s<N>(1.0f));
}

/// 2^x as a product of two numbers, so that what follows can fuse it.
template <int N>
struct PowerOfTwo {
  F32<N> fraction, scale;
};

/// scale = 2^round(x), but 0 for x < -126.5 and inf for x >= 127.5. The fraction is NaN for NaN.
template <int N>
[[gnu::always_inline]] inline PowerOfTwo<N> split_power_of_two(F32<N> x) {
  // NaN fails both comparisons and stays.
  x = max(f32s<N>(-127.0f), min(f32s<N>(128.0f), x));
  // Adding 1.5 * 2^23 rounds, and leaves the integer in the low bits of the mantissa; 127 is the exponent's bias.
  constexpr float kRound = 12582912.0f + 127.0f;
  const F32<N> shifted = x + kRound;
  return {power_of_fraction(x - (shifted - kRound)), float_of_bits(bits_of(shifted) << 23)};
}

constexpr float kLog2E = 1.44269504f;

/// e^x, relative error below 2e-7 + 6e-8 |x| (as much as half a unit in the last place of x makes); 0 below 2^-126.5, inf
/// from 2^127.5 on, NaN for NaN.
template <int N>
[[gnu::always_inline]] inline F32<N> exp(F32<N> x) {
  const PowerOfTwo<N> power = split_power_of_two(x * kLog2E);
  return power.fraction * power.scale;
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
