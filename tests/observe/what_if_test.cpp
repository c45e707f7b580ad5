/// Forecasts of other casts against making them.
#include "observe/what_if.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/error.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

constexpr std::int64_t kRows = 64, kCols = 96;

/// Numbers over some binades, mixed.
std::vector<float> mixed_numbers(float spread) {
  const Random random(2, 3);
  std::vector<float> values;
  for (std::uint64_t i = 0; i < kRows * kCols; ++i) {
    const float x = std::ldexp(random.normal(2 * i), static_cast<int>(spread * random.normal(2 * i + 1)));
    values.push_back(i % 50 == 0 ? 0 : to_float(to_bf16(x)));
  }
  return values;
}

ExponentHistogram histogram_of(const std::vector<float>& values) {
  std::vector<std::int64_t> counts(kExponents);
  for (const float x : values) ++counts[std::bit_cast<std::uint32_t>(x) >> 23 & 0xFF];
  return to_histogram(counts);
}

CastTensor tensor_of(const std::vector<float>& values) {
  CastTensor tensor;
  tensor.name = "test";
  float amax = 0;
  for (const float x : values) amax = std::max(amax, std::fabs(x));
  tensor.amax_history = {0, amax};
  tensor.scale = fp8_max(DType::e4m3) / amax;
  tensor.exponents = histogram_of(values);
  return tensor;
}

Alternative alternative(const std::string& text) {
  return parse_alternatives(text).at(0);
}

/// Shares of the numbers that are not zero.
struct Made {
  double saturated, underflowed;
};
Made shares(const std::vector<std::int64_t>& counters) {
  const auto numbers = static_cast<double>(counters[kCastElements] - counters[kCastZeros]);
  return {static_cast<double>(counters[kCastSaturated]) / numbers,
          static_cast<double>(counters[kCastUnderflowed]) / numbers};
}

Made cast_with(const std::vector<float>& values, DType format, float scale) {
  std::vector<std::int64_t> counters(kCastCounters);
  for (const float x : values) {
    const std::uint8_t byte = fp8_encode(format, x * scale);
    ++counters[kCastElements];
    counters[kCastSaturated] += std::fabs(x * scale) > fp8_max(format);
    counters[kCastUnderflowed] += x != 0 && (byte & 0x7F) == 0;
    counters[kCastZeros] += x == 0;
  }
  return shares(counters);
}

/// By the backend's own MXFP8.
Made cast_mxfp8(const std::vector<float>& values) {
  const auto backend = make_backend("reference");
  const Tensor x = upload(*backend, values, {kRows, kCols}, DType::bf16);
  const OperandCast how = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop);
  const QuantizedTensor q = allocate_quantized(*backend, how, kRows, kCols);
  const Tensor counts = backend->allocate(DType::i64, {kCastCounters});
  backend->fill(counts, 0);
  backend->quantize(x, how, {}, counts, q);
  std::vector<std::int64_t> counters(kCastCounters);
  backend->copy_to_host(counts, counters.data());
  return shares(counters);
}

void expect_within(double found, const ShareBounds& bounds, const std::string& what, double slack = 1e-12) {
  EXPECT_GE(found, bounds.low - slack) << what;
  EXPECT_LE(found, bounds.high + slack) << what;
}

TEST(WhatIfTest, OneScaleATensorLiesWithinTheForecast) {
  for (const float spread : {1.0f, 4.0f, 8.0f}) {
    const std::vector<float> values = mixed_numbers(spread);
    const CastTensor tensor = tensor_of(values);
    for (const char* text :
         {"e4m3", "e5m2", "margin=0", "margin=2", "margin=-3", "scale=0.37", "scale=1e3"}) {
      const Alternative other = alternative(text);
      const WhatIf forecast = what_if(tensor, other);
      const Made made = cast_with(values, other.format.value_or(DType::e4m3), forecast.scale);
      expect_within(made.saturated, forecast.saturated, text);
      expect_within(made.underflowed, forecast.underflowed, text);
      EXPECT_FALSE(forecast.if_mixed);
    }
  }
}

TEST(WhatIfTest, ScalesFollowTheAmaxOfTheTensor) {
  CastTensor tensor = tensor_of(mixed_numbers(2));
  const float amax = tensor.amax_history.back();
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("e4m3")).scale, 448 / amax);
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("e5m2")).scale, 57344 / amax);
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("margin=2")).scale, 112 / amax);
  tensor.margin = 1;
  tensor.scale /= 2;
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("margin=2")).scale, 112 / amax);
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("e5m2")).scale, 28672 / amax) << "the margin stays";
  tensor.amax_history.clear();
  tensor.margin = 0;
  EXPECT_FLOAT_EQ(what_if(tensor, alternative("e4m3")).scale,
                  std::ldexp(448.0f, -(tensor.exponents->top + 1)));
}

TEST(WhatIfTest, BlocksOfMixedNumbersLoseWhatTheEstimateSays) {
  for (const float spread : {3.0f, 6.0f, 8.0f}) {
    const std::vector<float> values = mixed_numbers(spread);
    const WhatIf forecast = what_if(tensor_of(values), alternative("mxfp8"));
    const double found = cast_mxfp8(values).underflowed;
    expect_within(found, forecast.underflowed, "bound");
    // 192 blocks are a sample: three standard deviations of a share of 6144 numbers that come 32 at a time.
    const double slack = 3 * std::sqrt(found * (1 - found) * 32 / 6144);
    expect_within(found, *forecast.if_mixed, "estimate", slack);
    EXPECT_EQ(forecast.saturated.high, 0);
  }
  EXPECT_GT(cast_mxfp8(mixed_numbers(8)).underflowed, 0.05) << "or the test says nothing";
}

TEST(WhatIfTest, BlocksOfEqualsLoseNothingAndTheBoundSaysSo) {
  std::vector<float> values = mixed_numbers(8);
  std::sort(values.begin(), values.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  const WhatIf forecast = what_if(tensor_of(values), alternative("mxfp8"));
  const double found = cast_mxfp8(values).underflowed;
  EXPECT_LT(found, 0.01) << "sorted numbers share blocks with their likes";
  expect_within(found, forecast.underflowed, "bound");
  EXPECT_GT(forecast.if_mixed->low, found) << "the estimate assumes mixing";
}

TEST(WhatIfTest, OneLargeNumberABlockMeetsTheUpperBound) {
  std::vector<float> values(kRows * kCols, 1.0f);
  for (std::size_t i = 0; i < values.size(); i += 32) values[i] = 0x1.8p20f;  // below 1.75 * 2^20
  const WhatIf forecast = what_if(tensor_of(values), alternative("mxfp8"));
  EXPECT_DOUBLE_EQ(cast_mxfp8(values).underflowed, 31.0 / 32);
  EXPECT_DOUBLE_EQ(forecast.underflowed.high, 31.0 / 32);
  EXPECT_EQ(forecast.underflowed.low, 0);
}

TEST(WhatIfTest, WhatIsNotAnAlternativeIsRefused) {
  for (const char* text : {"", "e3m4", "margin", "margin=", "margin=x", "margin=1000", "scale=0", "scale=-1",
                           "scale=nan", "e4m3,,e5m2", "mxfp4"})
    EXPECT_THROW(parse_alternatives(text), Error) << text;
  EXPECT_EQ(parse_alternatives("e5m2,margin=1,mxfp8").size(), 3u);
  CastTensor tensor;
  EXPECT_THROW(what_if(tensor, alternative("e5m2")), Error);
}

}  // namespace
}  // namespace quaver
