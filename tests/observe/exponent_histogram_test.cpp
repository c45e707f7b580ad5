/// Histograms of exponents, and what they say about casts, against casting every number.
#include "observe/exponent_histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "quaver/error.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

std::vector<std::int64_t> exponents_of(const std::vector<float>& values) {
  std::vector<std::int64_t> counts(kExponents);
  for (const float x : values) ++counts[std::bit_cast<std::uint32_t>(x) >> 23 & 0xFF];
  return counts;
}

/// Numbers over about 60 binades, and zeros.
std::vector<float> wide_numbers() {
  const Random random(1, 2);
  std::vector<float> values(50, 0.0f);
  for (std::uint64_t i = 0; i < 5000; ++i)
    values.push_back(std::ldexp(random.normal(2 * i), static_cast<int>(8 * random.normal(2 * i + 1))));
  return values;
}

TEST(ExponentHistogramTest, KeepsTheHighestBinadesAndGathersTheRest) {
  std::vector<std::int64_t> exponents(kExponents);
  exponents[0] = 5, exponents[255] = 2;
  exponents[127] = 10, exponents[126] = 20, exponents[96] = 3, exponents[95] = 4, exponents[50] = 6;
  const ExponentHistogram histogram = to_histogram(exponents);
  EXPECT_EQ(histogram.top, 0);
  EXPECT_EQ(histogram.counts[0], 10);
  EXPECT_EQ(histogram.counts[1], 20);
  EXPECT_EQ(histogram.counts[31], 3);
  EXPECT_EQ(histogram.below, 4 + 6) << "below 2^-31";
  EXPECT_EQ(histogram.zeros, 5);
  EXPECT_EQ(histogram.non_finite, 2);
  EXPECT_EQ(histogram.numbers(), 43);
  EXPECT_EQ(to_histogram(to_exponents(histogram)), histogram);
}

TEST(ExponentHistogramTest, OfNothingAndOfZeros) {
  EXPECT_EQ(to_histogram(std::vector<std::int64_t>(kExponents)), ExponentHistogram());
  const ExponentHistogram zeros = to_histogram(exponents_of({0, -0.0f}));
  EXPECT_EQ(zeros.numbers(), 0);
  EXPECT_EQ(forecast_cast(zeros, DType::e4m3, 1).underflowed.high, 0);
  EXPECT_EQ(to_histogram(to_exponents(zeros)), zeros);
  EXPECT_THROW(to_histogram(std::vector<std::int64_t>(3)), Error);
  // The lowest binade of FP32 at the end of the table.
  const ExponentHistogram small = to_histogram(exponents_of({0x1p-126f, 0x1p-125f}));
  EXPECT_EQ(to_histogram(to_exponents(small)), small);
}

TEST(ExponentHistogramTest, TheForecastHoldsForEveryFormatMarginAndScale) {
  const std::vector<float> values = wide_numbers();
  const ExponentHistogram histogram = to_histogram(exponents_of(values));
  int partial = 0;
  for (const DType format : {DType::e4m3, DType::e5m2}) {
    for (int power = -30; power <= 20; ++power) {
      for (const float mantissa : {1.0f, 1.3f, 1.75f}) {
        const float scale = std::ldexp(mantissa, power);
        std::int64_t saturated = 0, underflowed = 0;
        for (const float x : values) {
          saturated += std::fabs(x * scale) > fp8_max(format);
          underflowed += x != 0 && (fp8_encode(format, x * scale) & 0x7F) == 0;
        }
        const CastForecast forecast = forecast_cast(histogram, format, scale);
        const double numbers = static_cast<double>(histogram.numbers());
        // Shares are sums of at most 32 quotients: 1e-12 is far above their rounding, far below one number in 5000.
        EXPECT_LE(forecast.saturated.low, static_cast<double>(saturated) / numbers + 1e-12) << scale;
        EXPECT_GE(forecast.saturated.high, static_cast<double>(saturated) / numbers - 1e-12) << scale;
        EXPECT_LE(forecast.underflowed.low, static_cast<double>(underflowed) / numbers + 1e-12) << scale;
        EXPECT_GE(forecast.underflowed.high, static_cast<double>(underflowed) / numbers - 1e-12) << scale;
        partial += forecast.underflowed.high > forecast.underflowed.low;
        // Only the binade of the limit is open (and what lies below the table's end).
        const std::int64_t widest = *std::max_element(histogram.counts.begin(), histogram.counts.end());
        EXPECT_LE(forecast.underflowed.high - forecast.underflowed.low,
                  static_cast<double>(widest + histogram.below) / numbers + 1e-12);
      }
    }
  }
  EXPECT_GT(partial, 0);
}

TEST(ExponentHistogramTest, TheBestScaleSaturatesNothingAndTwiceItMay) {
  const ExponentHistogram histogram = to_histogram(exponents_of(wide_numbers()));
  for (const DType format : {DType::e4m3, DType::e5m2}) {
    const float best = best_scale(histogram, format);
    EXPECT_EQ(forecast_cast(histogram, format, best).saturated.high, 0);
    EXPECT_GT(forecast_cast(histogram, format, 2 * best).saturated.high, 0);
  }
}

}  // namespace
}  // namespace quaver
