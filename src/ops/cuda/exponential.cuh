/// The chip's exponential and reciprocal.
#pragma once

#include <limits>

#include "ops/cuda/launch.h"

namespace quaver::cuda {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.69314718f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// 2^x within 2 units of the last place; results that would be denormal are 0.
__device__ inline float power_of_two(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

/// 1 / x within 1 unit of the last place; results that would be denormal are 0.
__device__ inline float reciprocal(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

}  // namespace quaver::cuda
