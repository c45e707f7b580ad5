/// What AdamW keeps, in memory and as FP32 numbers: docs/numerics.md, "Optimizer state in fewer bits".
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/reference/elements.h"
#include "ops/reference/noise.h"
#include "ops/step_noise.h"
#include "quaver/backend.h"

namespace quaver::reference {

/// `stored` is f32, bf16, or e4m3 with scales.
inline std::vector<float> read_state(const Tensor& stored, const Tensor& scales = {}) {
  std::vector<float> values(static_cast<std::size_t>(stored.elements()));
  const RealMatrix row(stored.reshape({1, stored.elements()}));
  for (std::int64_t i = 0; i < stored.elements(); ++i) {
    values[i] = scales ? fp8_decode(DType::e4m3, stored.data<std::uint8_t>()[i]) *
                             scales.data<float>()[i / kMomentBlock]
                       : row(0, i);
  }
  return values;
}

/// As f32 or bf16.
inline void write_state(const std::vector<float>& values, const CastNoise& noise, const Tensor& stored) {
  for (std::int64_t i = 0; i < stored.elements(); ++i) {
    if (stored.dtype() == DType::f32) {
      stored.data<float>()[i] = values[i];
    } else {
      stored.data<bf16>()[i] = to_bf16_stochastic(values[i], uniform_of(noise, i));
    }
  }
}

/// As e4m3 with scales. No positive number gets a code below `least`.
inline void write_codes(const std::vector<float>& values, const CastNoise& noise, std::uint8_t least,
                        const Tensor& stored, const Tensor& scales) {
  const std::int64_t count = stored.elements();
  for (std::int64_t begin = 0; begin < count; begin += kMomentBlock) {
    const std::int64_t end = std::min(count, begin + kMomentBlock);
    float amax = kLeastMomentAmax;
    for (std::int64_t i = begin; i < end; ++i) {
      // A comparison with NaN is false.
      if (const float magnitude = std::fabs(values[i]); magnitude > amax) amax = magnitude;
    }
    const float multiplier = 448.0f / amax;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint8_t code =
          fp8_encode_stochastic(DType::e4m3, values[i] * multiplier, uniform_of(noise, i));
      stored.data<std::uint8_t>()[i] = values[i] > 0 ? std::max(code, least) : code;
    }
    scales.data<float>()[begin / kMomentBlock] = amax / 448.0f;
  }
}

}  // namespace quaver::reference
