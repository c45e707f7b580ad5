/// How the magnitudes of a tensor are distributed, and what a cast with any format and scale would do to them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "quaver/scaling.h"
#include "quaver/tensor.h"

namespace quaver {

/// What lies below 32 binades becomes zero in every FP8 format, wherever the largest number fits.
constexpr std::size_t kBinades = 32;

/// Counts of finite |x| by binade, from the highest that holds any.
struct ExponentHistogram {
  int top = 0;                                  ///< counts[0] is of |x| in [2^top, 2^(top+1))
  std::array<std::int64_t, kBinades> counts{};  ///< counts[i] is of [2^(top-i), 2^(top-i+1))
  std::int64_t below = 0;                       ///< of (0, 2^(top-31))
  std::int64_t zeros = 0;                       ///< FP32 subnormals included
  std::int64_t non_finite = 0;

  /// Finite elements that are not zero.
  std::int64_t numbers() const;
  friend bool operator==(const ExponentHistogram&, const ExponentHistogram&) = default;
};

/// From the kExponents counts that `Backend::count_exponents` writes.
ExponentHistogram to_histogram(std::span<const std::int64_t> exponents);
/// kExponents counts that give this histogram.
std::vector<std::int64_t> to_exponents(const ExponentHistogram& histogram);

/// A share of a tensor's numbers that is known up to those of the binade in which the limit lies.
struct ShareBounds {
  double low = 0, high = 0;
};

/// What q = encode(x * scale) would do, as shares of `numbers()`.
struct CastForecast {
  ShareBounds saturated;    ///< |x| * scale above the largest number of the format
  ShareBounds underflowed;  ///< becomes zero
};
/// `format` is e4m3 or e5m2.
CastForecast forecast_cast(const ExponentHistogram& histogram, DType format, float scale);

/// What a cast in blocks of `elements` numbers would do, each with the power of two that fits its own largest number
/// (MXFP8, block scaling). A histogram does not say which numbers share a block, so this bounds, and estimates under a
/// stated assumption. Finite numbers do not saturate.
struct BlockForecast {
  /// At least none (equals may lie together); at most what one such scale for the whole tensor would lose, as no block's
  /// scale is smaller.
  ShareBounds underflowed;
  /// If large and small numbers were mixed at random.
  ShareBounds if_mixed;
};
BlockForecast forecast_blocks(const ExponentHistogram& histogram, DType format, int elements);

/// The largest scale under which no binade saturates: a power of two.
float best_scale(const ExponentHistogram& histogram, DType format);

}  // namespace quaver
