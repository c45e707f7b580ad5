/// Activation functions and their slopes.
#pragma once

#include "ops/cuda/launch.h"
#include "quaver/model_config.h"

namespace quaver::cuda {

enum class Curve : std::int64_t { silu, gelu, sigmoid, sigmoid2 };

inline Curve curve_of(Activation kind) {
  return kind == Activation::swiglu ? Curve::silu : Curve::gelu;
}
inline Curve curve_of(GateActivation kind) {
  switch (kind) {
    case GateActivation::silu:
      return Curve::silu;
    case GateActivation::sigmoid2:
      return Curve::sigmoid2;
    default:
      return Curve::sigmoid;
  }
}

struct ValueAndSlope {
  float value, slope;
};

__device__ inline float sigmoid_of(float x) {
  return 1.0f / (1.0f + expf(-x));
}

/// The curve is the same for all threads of a launch.
__device__ inline ValueAndSlope evaluate(Curve curve, float x) {
  if (curve == Curve::gelu) {
    // 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). Beyond 30 the slope is 0 or 1;
    // there x^2 must not overflow, because infinity times s (1 - s) = 0 is NaN.
    const float s = sigmoid_of(1.59576912f * (x + 0.044715f * (x * x * x)));
    const float near = fminf(30.0f, fmaxf(-30.0f, x));
    const float inner = 1.59576912f * (1.0f + 0.134145f * (near * near));
    return {x * s, s + (near * (s * (1.0f - s))) * inner};
  }
  const float s = sigmoid_of(x);
  if (curve == Curve::silu) return {x * s, s * (1.0f + x * (1.0f - s))};
  const float factor = curve == Curve::sigmoid2 ? 2.0f : 1.0f;
  return {factor * s, factor * (s * (1.0f - s))};
}

}  // namespace quaver::cuda
