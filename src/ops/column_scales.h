/// The rule of `Backend::column_scales`, from the largest magnitudes of the columns (docs/numerics.md, "Smoothed inputs").
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <span>

namespace quaver {

/// Whether a column's largest magnitude says how large the column is: it is neither 0 nor infinite.
constexpr bool is_telling(float amax) {
  return amax > 0 && amax <= std::numeric_limits<float>::max();
}

/// floor(log2(amax)); -127 of denormals, which are below every limit here.
constexpr int exponent_of_amax(float amax) {
  return static_cast<int>(std::bit_cast<std::uint32_t>(amax) >> 23) - 127;
}

/// From the largest of the amaxes that say something, or 0. Beyond 2^32 a scale or its inverse could bring usual numbers out of
/// BF16's range.
constexpr int largest_column_exponent(float amax) {
  return is_telling(amax) ? std::clamp(exponent_of_amax(amax), -32, 32) : 0;
}

/// Of the scale of a column, half way to the largest, rounded down. Twice the widest spread of scales is what E4M3 holds beside
/// the numbers of a column.
constexpr int column_scale_exponent(float amax, int largest) {
  constexpr int kWidestSpread = 20;
  const int own =
      is_telling(amax) ? std::clamp(exponent_of_amax(amax), largest - kWidestSpread, largest) : largest;
  return (own + largest) >> 1;
}

/// 2^exponent, of a normal number.
constexpr float power_of_two(int exponent) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23);
}

/// All of one length.
void choose_column_scales(std::span<const float> amax, std::span<float> scale, std::span<float> inverse);

}  // namespace quaver
