/// Every rule of `inspect --health`: a tensor that triggers it, and one that just does not.
#include "observe/health.h"

#include <gtest/gtest.h>

#include <cmath>

#include <algorithm>
#include <limits>

namespace quaver {
namespace {

CastTensor healthy() {
  CastTensor tensor;
  tensor.name = "blocks.0.mlp.up_proj.input";
  tensor.scale = 100;
  tensor.amax_history = {0, 4, 4.2f, 4.1f};
  tensor.totals = {.cast = 10000, .saturated = 3, .underflowed = 5, .nan = 0, .infinite = 0, .zeros = 100};
  return tensor;
}

/// Numbers in binades below 2^0.
ExponentHistogram histogram(std::initializer_list<std::pair<int, std::int64_t>> counts) {
  ExponentHistogram result;
  result.top = -1;
  for (const auto& [depth, count] : counts) result.counts[static_cast<std::size_t>(depth)] = count;
  return result;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(HealthTest, AHealthyTensorGetsNoAdvice) {
  const CastTensor tensors[] = {healthy()};
  EXPECT_TRUE(advise(tensors).empty());
  EXPECT_TRUE(advise({}).empty());
}

TEST(HealthTest, NotFinite) {
  CastTensor tensor = healthy();
  EXPECT_FALSE(not_finite(tensor));
  tensor.totals.infinite = 1;
  ASSERT_TRUE(not_finite(tensor));
  EXPECT_TRUE(contains(not_finite(tensor)->text, "0 NaN and 1 infinities"));
  tensor.totals = {.cast = 10, .nan = 2};
  EXPECT_TRUE(not_finite(tensor));
}

TEST(HealthTest, SaturatesAboveOneInAThousand) {
  CastTensor tensor = healthy();
  tensor.totals.saturated = 10;
  EXPECT_FALSE(saturates(tensor));
  tensor.totals.saturated = 11;
  ASSERT_TRUE(saturates(tensor));
  EXPECT_TRUE(contains(saturates(tensor)->text, "0.11% of 10000 numbers")) << saturates(tensor)->text;
}

TEST(HealthTest, UnderflowsAboveOneInAHundredOfWhatIsNotZero) {
  CastTensor tensor = healthy();
  tensor.totals.underflowed = 99;
  EXPECT_FALSE(underflows(tensor)) << "of 9900 that are not zero";
  tensor.totals.underflowed = 100;
  ASSERT_TRUE(underflows(tensor));
  EXPECT_TRUE(contains(underflows(tensor)->text, "fp8.histogram_every"));
  tensor.exponents = histogram({{0, 90}, {19, 10}});
  const std::string text = underflows(tensor)->text;
  // E4M3 at its best scale 2^8: 2^-20 becomes 2^-12, below 2^-10; E5M2's is 2^15, of which 2^-5 is a number.
  EXPECT_TRUE(contains(text, "with the scale 256 it would be 10%, in E5M2 0%")) << text;
}

TEST(HealthTest, WantsBf16WhenNoScaleHelps) {
  CastTensor tensor = healthy();
  EXPECT_FALSE(wants_bf16(tensor)) << "nothing is known of its exponents";
  tensor.exponents = histogram({{0, 90}, {19, 10}});
  EXPECT_FALSE(wants_bf16(tensor)) << "E5M2 will do";
  tensor.exponents = histogram({{0, 90}});
  tensor.exponents->below = 5;
  EXPECT_TRUE(wants_bf16(tensor));
  tensor.exponents = histogram({{0, 96}});
  tensor.exponents->below = 4;
  EXPECT_FALSE(wants_bf16(tensor)) << "4% is not more than 5%";
}

TEST(HealthTest, AHistoryIsStaleWhenItsMaximumIsOldAndFarAbove) {
  CastTensor tensor = healthy();
  tensor.algo = AmaxCompute::max;
  tensor.amax_history = {0, 80, 4, 5, 6, 4};
  ASSERT_TRUE(stale_history(tensor));
  EXPECT_TRUE(contains(stale_history(tensor)->text, "an amax of 80 from 4 updates ago"))
      << stale_history(tensor)->text;
  tensor.algo = AmaxCompute::most_recent;
  EXPECT_FALSE(stale_history(tensor)) << "the newest amax alone counts";
  tensor.algo = AmaxCompute::max;
  tensor.amax_history = {0, 47, 4, 5, 6, 4};
  EXPECT_FALSE(stale_history(tensor)) << "less than 8 times";
  tensor.amax_history = {0, 4, 4, 5, 80, 4};
  EXPECT_FALSE(stale_history(tensor)) << "an update ago";
  tensor.amax_history = {0, std::numeric_limits<float>::infinity(), 4, 5, 6, 4};
  EXPECT_FALSE(stale_history(tensor)) << "an infinity sets no scale";
  for (const auto& empty : {std::vector<float>{}, std::vector<float>{0}, std::vector<float>{0, 0, 0}}) {
    tensor.amax_history = empty;
    EXPECT_FALSE(stale_history(tensor));
    EXPECT_FALSE(lags(tensor));
  }
}

TEST(HealthTest, LagsWhenTheAmaxKeepsRising) {
  CastTensor tensor = healthy();
  tensor.amax_history = {0, 4, 4, 6, 9};
  ASSERT_TRUE(lags(tensor));
  EXPECT_TRUE(contains(lags(tensor)->text, "each of the last 2 updates, from 4 to 9")) << lags(tensor)->text;
  tensor.margin = 1;
  EXPECT_FALSE(lags(tensor)) << "the margin holds a rise to twice";
  tensor.margin = 0;
  tensor.amax_history = {0, 4, 6, 4, 6};
  EXPECT_FALSE(lags(tensor)) << "one rise is noise";
  tensor.amax_history = {0, 4, 4, 4.5f, 5};
  EXPECT_FALSE(lags(tensor)) << "by less than a quarter";
  tensor.amax_history = {0, 10, 4, 6, 9};
  EXPECT_TRUE(lags(tensor));
  tensor.algo = AmaxCompute::max;
  EXPECT_FALSE(lags(tensor)) << "the scale of 10 had room";
}

TEST(HealthTest, AdviceNamesItsTensorAndRule) {
  CastTensor sick = healthy();
  sick.name = "lm_head.grad_output";
  sick.totals.underflowed = 300;
  sick.totals.saturated = 300;
  const CastTensor tensors[] = {healthy(), sick};
  const auto advice = advise(tensors);
  ASSERT_EQ(advice.size(), 2u);
  EXPECT_EQ(advice[0].tensor, "lm_head.grad_output");
  EXPECT_EQ(advice[0].rule, "saturates");
  EXPECT_EQ(advice[1].rule, "underflows");
}

}  // namespace
}  // namespace quaver
