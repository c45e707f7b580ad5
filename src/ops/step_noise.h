/// The random numbers of `Backend::adamw`.
#pragma once

#include "base/random.h"
#include "quaver/backend.h"

namespace quaver {

enum class StepArray : std::uint64_t { value, m, v };

inline CastNoise step_noise(const AdamWStep& step, const AdamWTensor& tensor, StepArray array) {
  const Random of_step(tensor.noise_stream, static_cast<std::uint64_t>(step.step));
  return {step.seed, of_step.bits(static_cast<std::uint64_t>(array))};
}

}  // namespace quaver
