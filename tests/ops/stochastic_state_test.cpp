/// AdamW's state in fewer bits is right on average: no change is lost for being small.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "quaver/backend.h"
#include "support/test_backends.h"

namespace quaver::testing {
namespace {

/// 4096 equal elements: a mean's random part is known.
class StochasticState : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr std::int64_t kCount = 4096;
  std::shared_ptr<Backend> backend = make_test_backend(GetParam());

  Tensor filled(DType type, float value) {
    return upload(*backend, std::vector<float>(kCount, value), {kCount}, type);
  }
  Tensor codes() {
    const std::vector<std::uint8_t> zeros(kCount);
    const Tensor tensor = backend->allocate(DType::e4m3, {kCount});
    backend->copy_from_host(zeros.data(), tensor);
    return tensor;
  }
  Tensor scales() {
    return upload(*backend, std::vector<float>(kCount / kMomentBlock), {kCount / kMomentBlock});
  }
  void step(const AdamWStep& how, const AdamWTensor& tensor) {
    backend->adamw(how, upload(*backend, std::vector{1.0f}, {1}), 0, std::span(&tensor, 1));
  }
  double mean(const std::vector<float>& values) {
    double sum = 0;
    for (const float value : values) sum += value;
    return sum / static_cast<double>(values.size());
  }
  double mean(const Tensor& tensor) { return mean(download(*backend, tensor)); }
};
INSTANTIATE_TEST_SUITE_P(Backends, StochasticState, ::testing::ValuesIn(test_backends()));

// Bounds: five standard deviations of a mean of 4096 numbers that are one of two neighbours, at most half their distance each.
constexpr double kFiveDeviations = 5 * 0.5 / 64;

TEST_P(StochasticState, Bf16IsRoundedRightOnAverage) {
  for (const float gradient : {1.0f + 0x1.4p-9f, -3.0f - 0x1p-8f, 0x1.01p-127f}) {
    const AdamWTensor tensor{filled(DType::f32, gradient), filled(DType::bf16, 0.5f), filled(DType::bf16, 0),
                             filled(DType::bf16, 0)};
    step({.lr = 0, .beta1 = 0, .beta2 = 0}, tensor);
    const double spacing = std::max(std::exp2(std::ilogb(gradient) - 7), 0x1p-133);
    EXPECT_NEAR(mean(tensor.m), gradient, kFiveDeviations * spacing);
    const double square = static_cast<double>(gradient) * gradient;
    if (square > 1) {
      EXPECT_NEAR(mean(tensor.v), square, kFiveDeviations * std::exp2(std::ilogb(square) - 7));
    }
    EXPECT_EQ(mean(tensor.value), 0.5) << "a number of BF16 stays itself";
    const auto found = download(*backend, tensor.m);
    EXPECT_NE(*std::min_element(found.begin(), found.end()), *std::max_element(found.begin(), found.end()));
  }
}

TEST_P(StochasticState, Fp8IsRoundedRightOnAverage) {
  std::vector<float> gradient(kCount, 1.03f);
  for (std::size_t i = 0; i < gradient.size(); i += kMomentBlock) gradient[i] = 448;
  AdamWTensor tensor{upload(*backend, gradient, {kCount}), filled(DType::f32, 1), codes(), codes()};
  tensor.m_scales = scales();
  tensor.v_scales = scales();
  step({.lr = 0, .beta1 = 0, .beta2 = 0}, tensor);
  for (const Tensor& stored : {tensor.m, tensor.v}) {
    std::vector<float> numbers = download(*backend, stored);
    std::erase(numbers, 448.0f);
    ASSERT_EQ(numbers.size(), kCount - kCount / kMomentBlock);
    EXPECT_NEAR(mean(numbers), 1.03, kFiveDeviations * 0.125);
  }
}

// v decays by 5% a step, a third of the distance of E4M3's square roots: to nearest it would never move.
TEST_P(StochasticState, AMomentBelowHalfAStepDecays) {
  std::vector<float> gradient(kCount, 1.0f);
  for (std::size_t i = 0; i < gradient.size(); i += kMomentBlock) gradient[i] = 100;
  AdamWTensor tensor{upload(*backend, gradient, {kCount}), filled(DType::f32, 1), codes(), codes()};
  tensor.m_scales = scales();
  tensor.v_scales = scales();
  step({.lr = 0, .beta1 = 0, .beta2 = 0}, tensor);
  std::replace(gradient.begin(), gradient.end(), 1.0f, 0.0f);
  tensor.gradient = upload(*backend, gradient, {kCount});
  for (std::int64_t i = 2; i <= 21; ++i) step({.lr = 0, .step = i}, tensor);
  const auto codes = download(*backend, tensor.v);
  const auto of_blocks = download(*backend, tensor.v_scales);
  double sum = 0;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const float root = codes[i] * of_blocks[i / kMomentBlock];
    if (gradient[i] == 0) sum += root * root / (kCount - kCount / kMomentBlock);
  }
  // 0.95^20 = 0.358; a square's mean is above the mean's square by the spread of 20 roundings.
  EXPECT_GT(sum, 0.33);
  EXPECT_LT(sum, 0.45);
}

TEST_P(StochasticState, AnUpdateBelowHalfAStepOfTheMasterIsNotLost) {
  const AdamWTensor tensor{filled(DType::f32, 1), filled(DType::bf16, 1), filled(DType::f32, 0),
                           filled(DType::f32, 0)};
  constexpr int kSteps = 16;
  constexpr float kUpdate = 0x1p-12f, kSpacing = 0x1p-8f;  // of BF16 below 1
  ASSERT_EQ(to_float(to_bf16(1 - kUpdate)), 1) << "lost when rounded to nearest";
  for (int i = 1; i <= kSteps; ++i)
    step({.lr = kUpdate, .beta1 = 0, .beta2 = 0, .epsilon = 0, .step = i}, tensor);
  const double deviation = std::sqrt(kSteps * (1.0 / 16) * (15.0 / 16)) * kSpacing / 64;
  EXPECT_NEAR(mean(tensor.value), 1 - kSteps * kUpdate, 5 * deviation);
}

TEST_P(StochasticState, RandomNumbersDependOnSeedStepAndStream) {
  const auto value = [&](std::uint64_t seed, std::int64_t at, std::uint64_t stream) {
    AdamWTensor tensor{filled(DType::f32, 1), filled(DType::bf16, 1), filled(DType::f32, 0),
                       filled(DType::f32, 0)};
    tensor.noise_stream = stream;
    step({.lr = 0x1p-9f, .beta1 = 0, .beta2 = 0, .step = at, .seed = seed}, tensor);
    return download(*backend, tensor.value);
  };
  const auto first = value(1, 1, 1);
  EXPECT_EQ(value(1, 1, 1), first);
  EXPECT_NE(value(2, 1, 1), first);
  EXPECT_NE(value(1, 2, 1), first);
  EXPECT_NE(value(1, 1, 2), first);
}

}  // namespace
}  // namespace quaver::testing
