/// FP8 on the device: the same bytes as quaver/fp8_format.h.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.h"
#ifndef __CUDACC__
#include "quaver/fp8_format.h"
#endif

namespace quaver::cuda {

enum class Fp8 : std::int32_t { e4m3, e5m2 };  // parameters of kernels have no padding

inline Fp8 fp8_of(DType dtype) {
  return dtype == DType::e5m2 ? Fp8::e5m2 : Fp8::e4m3;
}
__device__ inline float largest_fp8(Fp8 format) {
  return format == Fp8::e4m3 ? 448.0f : 57344.0f;
}
/// Half the smallest subnormal: a tie, which goes to the even zero.
__device__ inline float largest_rounded_to_zero(Fp8 format) {
  return format == Fp8::e4m3 ? 0x1p-10f : 0x1p-17f;
}

#ifdef __CUDACC__

/// Rounds to nearest even and saturates, infinities too; a NaN becomes 0x7F.
__device__ inline std::uint8_t fp8_byte(Fp8 format, float x) {
  std::uint16_t pair;
  if (format == Fp8::e4m3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  }
  return static_cast<std::uint8_t>(pair);
}

/// Both at once, the first in the lower byte.
__device__ inline unsigned fp8_pair(Fp8 format, float low, float high) {
  std::uint16_t pair;
  if (format == Fp8::e4m3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

/// Byte i of the result is the one that digit i of `selector` names: 0 to 3 of `a`, 4 to 7 of `b`, the lowest first.
__device__ inline unsigned select_bytes(unsigned a, unsigned b, unsigned selector) {
  return __byte_perm(a, b, selector);
}

#else

inline unsigned select_bytes(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t both = std::uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}

inline std::uint8_t fp8_byte(Fp8 format, float x) {
  return fp8_encode(format == Fp8::e4m3 ? DType::e4m3 : DType::e5m2, x);
}
inline unsigned fp8_pair(Fp8 format, float low, float high) {
  return fp8_byte(format, low) | static_cast<unsigned>(fp8_byte(format, high)) << 8;
}

#endif

/// Four numbers a word, the first in the lowest byte.
template <int N>
__device__ void fp8_words(Fp8 format, const float (&x)[N], unsigned (&words)[N / 4]) {
  const auto convert = [&](Fp8 known) {
#pragma unroll
    for (int w = 0; w < N / 4; ++w) {
      words[w] = fp8_pair(known, x[4 * w], x[4 * w + 1]) | fp8_pair(known, x[4 * w + 2], x[4 * w + 3]) << 16;
    }
  };
  if (format == Fp8::e4m3) {
    convert(Fp8::e4m3);
  } else {
    convert(Fp8::e5m2);
  }
}

__device__ inline float fp8_value(Fp8 format, std::uint8_t byte) {
  const unsigned sign = (byte & 0x80u) << 24, magnitude = byte & 0x7Fu;
  const bool e4m3 = format == Fp8::e4m3;
  if (e4m3 ? magnitude == 0x7F : magnitude > 0x7C) return __uint_as_float(0x7FC00000u);
  if (!e4m3 && magnitude == 0x7C) return __uint_as_float(sign | 0x7F800000u);
  // Exponent and mantissa where FP32 has them; denormals are denormals there. The factor brings the bias right, exactly.
  const float value = __uint_as_float(magnitude << (e4m3 ? 20 : 21)) * (e4m3 ? 0x1p120f : 0x1p112f);
  return __uint_as_float(__float_as_uint(value) | sign);
}

}  // namespace quaver::cuda
