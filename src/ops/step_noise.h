/// What all backends' `adamw` agree on: random numbers, and the smallest scale of moments in FP8.
#pragma once

#include "base/random.h"
#include "quaver/backend.h"

namespace quaver {

/// Smallest amax of a block of moments: 448 / amax stays finite.
inline constexpr float kLeastMomentAmax = 0x1p-100f;

enum class StepArray : std::uint64_t { value, m, v };

inline CastNoise step_noise(const AdamWStep& step, const AdamWTensor& tensor, StepArray array) {
  const Random of_step(tensor.noise_stream, static_cast<std::uint64_t>(step.step));
  return {step.seed, of_step.bits(static_cast<std::uint64_t>(array))};
}

}  // namespace quaver
