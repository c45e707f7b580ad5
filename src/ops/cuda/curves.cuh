/// Activation functions and their slopes.
#pragma once

#include <type_traits>

#include "ops/cuda/exponential.cuh"
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

/// Within |x| + 3 units of the last place.
__device__ inline float sigmoid_of(float x) {
  return reciprocal(1.0f + power_of_two(-kLog2E * x));
}

template <Curve kCurve>
__device__ ValueAndSlope evaluate(float x) {
  if constexpr (kCurve == Curve::gelu) {
    // 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). Beyond 30 the slope is 0 or 1;
    // there x^2 must not overflow, because infinity times s (1 - s) = 0 is NaN.
    const float s = sigmoid_of(1.59576912f * (x + 0.044715f * (x * x * x)));
    const float near = fminf(30.0f, fmaxf(-30.0f, x));
    const float inner = 1.59576912f * (1.0f + 0.134145f * (near * near));
    return {x * s, s + (near * (s * (1.0f - s))) * inner};
  } else {
    const float s = sigmoid_of(x);
    if constexpr (kCurve == Curve::silu) {
      const float value = x * s;
      return {value, fmaf(value, 1.0f - s, s)};
    }
    constexpr float kFactor = kCurve == Curve::sigmoid2 ? 2.0f : 1.0f;
    return {kFactor * s, kFactor * (s * (1.0f - s))};
  }
}

/// Of N numbers. The curve is the same for all threads of a launch.
template <int N>
__device__ void evaluate(Curve curve, const float (&x)[N], ValueAndSlope (&at)[N]) {
  const auto all = [&]<Curve kCurve>(std::integral_constant<Curve, kCurve>) {
#pragma unroll
    for (int i = 0; i < N; ++i) at[i] = evaluate<kCurve>(x[i]);
  };
  const auto number = [](Curve known) { return static_cast<int>(known); };  // comparisons of 64 bits are two
  if (number(curve) == number(Curve::silu)) {
    all(std::integral_constant<Curve, Curve::silu>{});
  } else if (number(curve) == number(Curve::gelu)) {
    all(std::integral_constant<Curve, Curve::gelu>{});
  } else if (number(curve) == number(Curve::sigmoid)) {
    all(std::integral_constant<Curve, Curve::sigmoid>{});
  } else {
    all(std::integral_constant<Curve, Curve::sigmoid2>{});
  }
}
__device__ inline ValueAndSlope evaluate(Curve curve, float x) {
  const float one[1] = {x};
  ValueAndSlope at[1];
  evaluate(curve, one, at);
  return at[0];
}

}  // namespace quaver::cuda
