/// Activation functions and their slopes. For kernel files only.
#pragma once

#include "ops/cpu/kernels/exponential.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

// gelu(x) = x (1 + tanh(z / 2)) / 2 = x sigmoid(z), z = a x + b x^3.
constexpr float kGeluA = 1.59576912f;    // 2 sqrt(2 / pi)
constexpr float kGeluB = 0.0713548163f;  // 0.044715 a

/// From where on sigmoid(z) is 0 or 1 and stays it; there x^3 must not overflow.
template <int N>
[[gnu::always_inline]] inline F32<N> near_zero(F32<N> x) {
  return max(f32s<N>(-30.0f), min(f32s<N>(30.0f), x));
}

/// 1 + e^-z, whose inverse is sigmoid(z); z = x but for gelu.
template <Curve curve, int N>
[[gnu::always_inline]] inline F32<N> inverse_sigmoid(F32<N> x) {
  F32<N> exponent;
  if constexpr (curve == Curve::gelu) {
    const F32<N> near = near_zero(x);
    exponent = near * fused_multiply_add(near * near, -kGeluB * kLog2E, f32s<N>(-kGeluA * kLog2E));
  } else {
    exponent = x * -kLog2E;
  }
  const PowerOfTwo<N> power = split_power_of_two(exponent);
  return fused_multiply_add(power.fraction, power.scale, f32s<N>(1.0f));
}

/// `inverse`: inverse_sigmoid of x.
template <Curve curve, int N>
[[gnu::always_inline]] inline F32<N> value_at(F32<N> x, F32<N> inverse) {
  if constexpr (curve == Curve::sigmoid) return 1.0f / inverse;
  if constexpr (curve == Curve::sigmoid2) return 2.0f / inverse;
  if constexpr (curve == Curve::silu || curve == Curve::gelu) return x / inverse;
}

template <Curve curve, int N>
[[gnu::always_inline]] inline F32<N> value_at(F32<N> x) {
  return value_at<curve>(x, inverse_sigmoid<curve>(x));
}

template <int N>
struct ValueAndSlope {
  F32<N> value, slope;
};

/// The value may differ from value_at's in its last place: it is a product with sigmoid(z), not a quotient.
template <Curve curve, int N>
[[gnu::always_inline]] inline ValueAndSlope<N> evaluate(F32<N> x, F32<N> inverse) {
  const F32<N> s = 1.0f / inverse;
  if constexpr (curve == Curve::sigmoid) return {s, s * (1.0f - s)};
  if constexpr (curve == Curve::sigmoid2) return {s + s, (s + s) * (1.0f - s)};
  if constexpr (curve == Curve::silu) return {x * s, fused_multiply_add(x * s, 1.0f - s, s)};
  if constexpr (curve == Curve::gelu) {
    const F32<N> near = near_zero(x);
    const F32<N> slope_of_z = fused_multiply_add(near * near, 3.0f * kGeluB, kGeluA);
    return {x * s, fused_multiply_add(near * slope_of_z, s * (1.0f - s), s)};
  }
}

template <Curve curve, int N>
[[gnu::always_inline]] inline ValueAndSlope<N> evaluate(F32<N> x) {
  return evaluate<curve>(x, inverse_sigmoid<curve>(x));
}

template <Curve curve>
struct CurveConstant {
  static constexpr Curve value = curve;
};

/// Calls f with the CurveConstant of `curve`.
template <typename F>
[[gnu::always_inline]] inline void with_curve(Curve curve, F f) {
  switch (curve) {
    case Curve::sigmoid:
      return f(CurveConstant<Curve::sigmoid>{});
    case Curve::sigmoid2:
      return f(CurveConstant<Curve::sigmoid2>{});
    case Curve::silu:
      return f(CurveConstant<Curve::silu>{});
    case Curve::gelu:
      return f(CurveConstant<Curve::gelu>{});
  }
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
