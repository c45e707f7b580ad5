/// Rounding with random numbers, element by element.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/random.h"
#include "quaver/scaling.h"
#include "quaver/tensor.h"

namespace quaver::reference {

/// Uniform in [0, 1), by element.
inline float uniform_of(const CastNoise& noise, std::int64_t element) {
  const auto half = [](std::uint64_t word, int shift) { return static_cast<std::uint32_t>(word >> shift); };
  const auto counter = static_cast<std::uint64_t>(element / 4);
  const auto words =
      philox4x32({half(counter, 0), half(counter, 32), half(noise.stream, 0), half(noise.stream, 32)},
                 {half(noise.seed, 0), half(noise.seed, 32)});
  return static_cast<float>(words[static_cast<std::size_t>(element % 4)] >> 8) * 0x1p-24f;
}

/// Of the two neighbours of |value| the upper one if the remainder exceeds `uniform`; above the largest it is infinite, as
/// with rounding to nearest.
inline bf16 to_bf16_stochastic(float value, float uniform) {
  if (std::isnan(value)) return to_bf16(value);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const float remainder = static_cast<float>(bits & 0xFFFF) * 0x1p-16f;
  return {static_cast<std::uint16_t>((bits >> 16) + (remainder > uniform ? 1 : 0))};
}

}  // namespace quaver::reference
