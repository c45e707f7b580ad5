/// Activation functions and their slopes. For kernel files only.
#pragma once

#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

struct ValueAndSlope {
  f32x16 value, slope;
};

/// Callers use one member only at times; what it does not need is optimised away.
template <Curve curve>
[[gnu::always_inline]] inline ValueAndSlope evaluate(f32x16 x) {
  if constexpr (curve == Curve::gelu) {
    // 0.5 (1 + tanh(u)) = sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
    const f32x16 s = sigmoid(1.59576912f * (x + 0.044715f * (x * x * x)));
    // Beyond 30 the slope is 0 or 1; there x^2 must not overflow, because infinity times s (1 - s) = 0 is
    // NaN.
    const f32x16 near = max(f32s(-30.0f), min(f32s(30.0f), x));
    const f32x16 inner = 1.59576912f * (1.0f + 0.134145f * (near * near));
    return {x * s, s + (near * (s * (1.0f - s))) * inner};
  } else {
    const f32x16 s = sigmoid(x);
    if constexpr (curve == Curve::sigmoid) return {s, s * (1.0f - s)};
    if constexpr (curve == Curve::sigmoid2) return {2.0f * s, 2.0f * (s * (1.0f - s))};
    if constexpr (curve == Curve::silu) return {x * s, s * (1.0f + x * (1.0f - s))};
  }
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
