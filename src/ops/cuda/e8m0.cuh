/// E8M0 on the device: the same bytes as quaver/fp8_format.h.
#pragma once

#include "ops/cuda/launch.h"

namespace quaver::cuda {

/// The smallest E8M0 number that is not below a number >= 0 (not NaN); at most 254.
__device__ inline unsigned e8m0_byte(float x) {
  const unsigned bits = __float_as_uint(x), exponent = bits >> 23, mantissa = bits & 0x7FFFFFu;
  // Below 2^-126 the exponent field is 0 for numbers on both sides of 2^-127, the smallest E8M0 number.
  const bool above = exponent == 0 ? mantissa > 0x400000u : mantissa > 0;
  return min(exponent + (above ? 1u : 0u), 254u);
}
/// 2^(byte - 127); 255 is NaN.
__device__ inline float e8m0_value(unsigned byte) {
  if (byte == 255) return __uint_as_float(0x7FC00000u);
  return __uint_as_float(byte == 0 ? 0x400000u : byte << 23);
}
/// 2^(127 - byte) for byte < 255.
__device__ inline float e8m0_reciprocal(unsigned byte) {
  return __uint_as_float(byte == 254 ? 0x400000u : (254 - byte) << 23);
}

}  // namespace quaver::cuda
