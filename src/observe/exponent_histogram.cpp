#include "observe/exponent_histogram.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

constexpr int kBias = 127;  // of FP32

/// 448 and 57344 lie in the binades of 2^8 and 2^15.
int top_binade(DType format) {
  return format == DType::e5m2 ? 15 : 8;
}

/// The largest magnitude that encodes to zero: half the smallest subnormal, which rounds to even.
double underflow_limit(DType format) {
  return format == DType::e5m2 ? 0x1p-17 : 0x1p-10;
}

/// The magnitudes [low, high) of entry i, of which the one after the binades is `below`.
struct Range {
  double low, high;
  std::int64_t count;
};
Range range_of(const ExponentHistogram& histogram, std::size_t i) {
  const double high = std::ldexp(1.0, histogram.top - static_cast<int>(i) + 1);
  if (i == kBinades) return {0x1p-126, high, histogram.below};
  return {high / 2, high, histogram.counts[i]};
}

}  // namespace

std::int64_t ExponentHistogram::numbers() const {
  return std::accumulate(counts.begin(), counts.end(), below);
}

ExponentHistogram to_histogram(std::span<const std::int64_t> exponents) {
  require(exponents.size() == kExponents, "histogram: expected {} counts, found {}", kExponents,
          exponents.size());
  ExponentHistogram histogram;
  histogram.zeros = exponents.front();
  histogram.non_finite = exponents.back();
  int highest = kExponents - 2;
  while (highest > 0 && exponents[static_cast<std::size_t>(highest)] == 0) --highest;
  if (highest == 0) return histogram;
  histogram.top = highest - kBias;
  for (int e = highest; e > 0; --e) {
    const auto depth = static_cast<std::size_t>(highest - e);
    (depth < kBinades ? histogram.counts[depth] : histogram.below) += exponents[static_cast<std::size_t>(e)];
  }
  return histogram;
}

std::vector<std::int64_t> to_exponents(const ExponentHistogram& histogram) {
  std::vector<std::int64_t> exponents(kExponents);
  exponents.front() = histogram.zeros;
  exponents.back() = histogram.non_finite;
  for (std::size_t i = 0; i <= kBinades; ++i) {
    const int exponent = histogram.top + kBias - static_cast<int>(i);
    if (exponent > 0) exponents[static_cast<std::size_t>(exponent)] += range_of(histogram, i).count;
  }
  return exponents;
}

CastForecast forecast_cast(const ExponentHistogram& histogram, DType format, float scale) {
  CastForecast forecast;
  const auto all = static_cast<double>(histogram.numbers());
  if (all == 0) return forecast;
  const double largest = static_cast<double>(fp8_max(format)) / static_cast<double>(scale);
  const double smallest = underflow_limit(format) / static_cast<double>(scale);
  for (std::size_t i = 0; i <= kBinades; ++i) {
    const auto [low, high, count] = range_of(histogram, i);
    if (count == 0) continue;
    const double share = static_cast<double>(count) / all;
    if (low > largest) forecast.saturated.low += share;
    if (high > largest) forecast.saturated.high += share;
    if (high <= smallest) forecast.underflowed.low += share;
    if (low <= smallest) forecast.underflowed.high += share;
  }
  return forecast;
}

BlockForecast forecast_blocks(const ExponentHistogram& histogram, DType format, int elements) {
  BlockForecast forecast;
  const auto numbers = static_cast<double>(histogram.numbers());
  if (numbers == 0) return forecast;
  // 448 = 1.75 * 2^8: a block whose largest number lies in the binade of 2^t takes the scale 2^(8-t), or 2^(7-t) if that
  // number is above 1.75 * 2^t. 57344 = 1.75 * 2^15.
  const int limit = std::ilogb(underflow_limit(format)) - top_binade(format);
  const double all = numbers + static_cast<double>(histogram.zeros);
  // Of the other numbers of a block, the chance that one lies in the binade of 2^t or above.
  const auto meets = [&](int t) {
    double below = all;
    for (std::size_t i = 0; i < kBinades && histogram.top - static_cast<int>(i) >= t; ++i)
      below -= static_cast<double>(histogram.counts[i]);
    return 1 - std::pow(std::max(0.0, below) / all, elements - 1);
  };
  for (std::size_t i = 0; i <= kBinades; ++i) {
    const auto [low, high, count] = range_of(histogram, i);
    if (count == 0) continue;
    const double share = static_cast<double>(count) / numbers;
    // x becomes zero if |x| <= 2^(t + limit), or 2^(t + limit + 1) at the smaller scale of the two.
    const int certain = std::ilogb(high) - limit, possible = std::ilogb(low) - limit - 1;
    if (low <= std::ldexp(1.0, histogram.top + limit + 1)) forecast.underflowed.high += share;
    forecast.if_mixed.low += share * meets(certain);
    forecast.if_mixed.high += share * meets(possible);
  }
  return forecast;
}

float best_scale(const ExponentHistogram& histogram, DType format) {
  // Numbers below the largest one's binade never saturate.
  return std::ldexp(1.0f, std::clamp(top_binade(format) - (histogram.top + 1), -126, 127));
}

}  // namespace quaver
