/// Linear in its three precisions, and the rules of delayed scaling as a module meets them.
#include "quaver/linear.h"
#include "support/quantized_codes.h"
#include "support/test_backends.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/error.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

constexpr std::int64_t kRows = 5, kIn = 7, kOut = 9;

std::vector<float> random_values(std::int64_t count, std::uint64_t stream, float size = 1.0f) {
  const Random random(1, stream);
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = size * random.normal(i);
  return values;
}

class LinearTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());
  Linear linear{*backend, {kIn, kOut, 2, 5}};
  std::vector<float> w = random_values(kOut * kIn, 1), b = random_values(5, 2);
  std::vector<float> x = random_values(kRows * kIn, 3), dy = random_values(kRows * kOut, 4, 0.01f);
  Tensor x_bf16 = upload(*backend, x, {kRows, kIn}, DType::bf16);
  Tensor dy_bf16 = upload(*backend, dy, {kRows, kOut}, DType::bf16);

  void SetUp() override {
    set_weight(w);
    backend->copy_from_host(b.data(), linear.bias()->value);
    ++linear.bias()->version;
  }
  void set_weight(const std::vector<float>& values) {
    backend->copy_from_host(values.data(), linear.weight().value);
    ++linear.weight().version;
  }
  Tensor forward(Context& context, Linear::Saved* saved) {
    return linear.forward(context, linear.cast_input(context, x_bf16), saved);
  }
  void train_micro_batch(Context& context) {
    Linear::Saved saved;
    {
      const Autocast scope(context, true, recipe);
      forward(context, &saved);
    }
    const BackwardPass pass(context);
    const Tensor dx = backend->allocate(DType::bf16, {kRows, kIn});
    linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy_bf16), dx);
  }
  float scale(const std::shared_ptr<ScalingSlot>& slot) { return download(*backend, slot->scale)[0]; }
  std::vector<float> history(const std::shared_ptr<ScalingSlot>& slot) {
    return download(*backend, slot->amax_history);
  }

  DelayedScaling recipe{.amax_history_len = 4};
};

float max_abs(const std::vector<float>& values) {
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::fabs(v));
  return amax;
}

TEST_P(LinearTest, ComputesTheThreeProductsInFp32) {
  Context context(*backend, DType::f32);
  const Tensor x_f32 = upload(*backend, x, {kRows, kIn}), dy_f32 = upload(*backend, dy, {kRows, kOut});
  Linear::Saved saved;
  const auto y = download(*backend, linear.forward(context, linear.cast_input(context, x_f32), &saved));
  const Tensor dx_tensor = backend->allocate(DType::f32, {kRows, kIn});
  linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy_f32), dx_tensor);
  const auto dx = download(*backend, dx_tensor), dw = download(*backend, linear.weight().gradient),
             db = download(*backend, linear.bias()->gradient);

  // Sums of at most 9 products of FP32 numbers of size 1: an error of 1e-5 is far above rounding, far below a
  // wrong term.
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kOut; ++n) {
      double sum = n >= 2 && n < 7 ? b[n - 2] : 0.0;
      for (int k = 0; k < kIn; ++k) sum += static_cast<double>(x[m * kIn + k]) * w[n * kIn + k];
      EXPECT_NEAR(y[m * kOut + n], sum, 1e-5);
    }
    for (int k = 0; k < kIn; ++k) {
      double sum = 0;
      for (int n = 0; n < kOut; ++n) sum += static_cast<double>(dy[m * kOut + n]) * w[n * kIn + k];
      EXPECT_NEAR(dx[m * kIn + k], sum, 1e-6);
    }
  }
  for (int n = 0; n < kOut; ++n) {
    double column = 0;
    for (int m = 0; m < kRows; ++m) column += dy[m * kOut + n];
    if (n >= 2 && n < 7) {
      EXPECT_NEAR(db[n - 2], column, 1e-6);
    }
    for (int k = 0; k < kIn; ++k) {
      double sum = 0;
      for (int m = 0; m < kRows; ++m) sum += static_cast<double>(dy[m * kOut + n]) * x[m * kIn + k];
      EXPECT_NEAR(dw[n * kIn + k], sum, 1e-6);
    }
  }
}

TEST_P(LinearTest, GradientsAccumulateOverMicroBatches) {
  Context context(*backend);
  train_micro_batch(context);
  const auto once = download(*backend, linear.weight().gradient);
  linear.weight().clear_gradient();
  Context again(*backend);
  for (int i = 0; i < 2; ++i) train_micro_batch(again);
  const auto twice = download(*backend, linear.weight().gradient);
  // The scales differ between the passes, so only FP8's own resolution (2^-4 relative, e5m2 2^-3) bounds the
  // difference.
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(twice[i], 2 * once[i], 0.25 * max_abs(twice));
  EXPECT_GT(max_abs(twice), 1.5f * max_abs(once));
}

TEST_P(LinearTest, HybridUsesE4m3ForwardAndE5m2Backward) {
  Context context(*backend);
  train_micro_batch(context);
  const auto& [fprop, dgrad, wgrad] = linear.fp8().gemms;
  EXPECT_EQ(fprop.a, DType::e4m3);
  EXPECT_EQ(fprop.b, DType::e4m3);
  EXPECT_EQ(fprop.out, DType::bf16);
  EXPECT_EQ(dgrad.a, DType::e5m2);
  EXPECT_EQ(dgrad.b, DType::e4m3);
  EXPECT_EQ(wgrad.a, DType::e5m2);
  EXPECT_EQ(wgrad.b, DType::e4m3);
  EXPECT_EQ(wgrad.out, DType::f32);
  for (const auto& gemm : linear.fp8().gemms) {
    EXPECT_EQ(gemm.fp8_runs, 1);
    EXPECT_EQ(gemm.other_runs, 0);
  }
}

TEST_P(LinearTest, TheE4m3FormatUsesItInBothPasses) {
  recipe.fp8_format = Fp8Format::e4m3;
  Context context(*backend);
  train_micro_batch(context);
  EXPECT_EQ(linear.fp8().gemms[1].a, DType::e4m3);
  EXPECT_EQ(scale(linear.fp8().grad_output), 448.0f / max_abs(download(*backend, dy_bf16)));
}

TEST_P(LinearTest, StepZeroCastsWithScaleOneAndTheNextCastUsesTheNewScale) {
  Context context(*backend);
  Linear::Saved first, second;
  {
    const Autocast scope(context, true, recipe);
    forward(context, &first);
    EXPECT_EQ(scale(linear.fp8().input), 1.0f) << "the scale must not change within the scope";
  }
  EXPECT_EQ(download(*backend, first.x_fp8.scale_inv)[0], 1.0f);
  const float amax = max_abs(download(*backend, x_bf16));
  EXPECT_EQ(scale(linear.fp8().input), 448.0f / amax);
  EXPECT_EQ(scale(linear.fp8().weight), 448.0f / max_abs(w));
  {
    const Autocast scope(context, true, recipe);
    forward(context, &second);
  }
  EXPECT_EQ(download(*backend, second.x_fp8.scale_inv)[0], 1.0f / (448.0f / amax));
  EXPECT_EQ(download(*backend, first.x_fp8.scale_inv)[0], 1.0f)
      << "a tensor keeps the scale_inv it was cast with";
}

TEST_P(LinearTest, InputsAreKeptForBackwardAsFp8Bytes) {
  Context context(*backend);
  Linear::Saved saved;
  const Autocast scope(context, true, recipe);
  forward(context, &saved);
  EXPECT_FALSE(saved.x.defined());
  ASSERT_TRUE(saved.x_fp8.defined());
  EXPECT_NE(saved.x_fp8.bytes.defined(), backend->needs_transposed_fp8()) << "wgrad reads one form";
  const auto bytes = testing::codes_of(*backend, saved.x_fp8), values = download(*backend, x_bf16);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(bytes[i], fp8_decode(DType::e4m3, fp8_encode(DType::e4m3, values[i])));
  }
}

TEST_P(LinearTest, TheWeightIsCastOncePerVersionAndItsSlotDoesNotRollOnCachedMicroBatches) {
  Context context(*backend);
  for (int micro_batch = 0; micro_batch < 3; ++micro_batch) train_micro_batch(context);
  EXPECT_EQ(linear.weight_casts(), 1);
  const float amax = max_abs(w), x_amax = max_abs(download(*backend, x_bf16));
  EXPECT_EQ(history(linear.fp8().weight), (std::vector<float>{0, 0, 0, amax}));
  EXPECT_EQ(history(linear.fp8().input), (std::vector<float>{0, x_amax, x_amax, x_amax}));
  const float dy_amax = max_abs(download(*backend, dy_bf16));
  EXPECT_EQ(history(linear.fp8().grad_output), (std::vector<float>{0, dy_amax, dy_amax, dy_amax}))
      << "the backward slots are updated once per backward pass, not per optimizer step";
  set_weight(random_values(kOut * kIn, 9));
  train_micro_batch(context);
  EXPECT_EQ(linear.weight_casts(), 2);
  EXPECT_EQ(history(linear.fp8().weight)[2], amax);
}

TEST_P(LinearTest, EvaluationLeavesNoTrace) {
  Context context(*backend);
  train_micro_batch(context);
  set_weight(random_values(kOut * kIn, 9, 3.0f));  // evaluation must cast it afresh, and still leave no trace
  const auto before = history(linear.fp8().input), weight_before = history(linear.fp8().weight);
  const float scale_before = scale(linear.fp8().input);
  {
    const NoGradients evaluation(context);
    const Autocast scope(context, true, recipe);
    linear.forward(context,
                   linear.cast_input(context, upload(*backend, random_values(kRows * kIn, 8, 100),
                                                     {kRows, kIn}, DType::bf16)),
                   nullptr);
  }
  EXPECT_EQ(history(linear.fp8().input), before);
  EXPECT_EQ(history(linear.fp8().weight), weight_before);
  EXPECT_EQ(scale(linear.fp8().input), scale_before);
  train_micro_batch(context);
  EXPECT_EQ(history(linear.fp8().weight)[3], max_abs(download(*backend, linear.weight().value)))
      << "the copy made by evaluation must not hide the amax from training";
}

TEST_P(LinearTest, AModuleThatDidNotRunKeepsItsHistory) {
  Context context(*backend);
  Linear other(*backend, {kIn, kOut});
  train_micro_batch(context);
  const auto before = history(linear.fp8().input);
  {
    const Autocast scope(context, true, recipe);
    other.forward(context, other.cast_input(context, x_bf16), nullptr);
  }
  EXPECT_EQ(history(linear.fp8().input), before);
}

TEST_P(LinearTest, SiblingsThatShareAnInputQuantiseItOnce) {
  Context context(*backend);
  Linear sibling(*backend, {kIn, kOut});
  sibling.share_input_of(linear);
  {
    const Autocast scope(context, true, recipe);
    const Output quantised = linear.cast_input(context, x_bf16);
    linear.forward(context, quantised, nullptr);
    sibling.forward(context, quantised, nullptr);
  }
  EXPECT_EQ(sibling.fp8().input, linear.fp8().input);
  const float amax = max_abs(download(*backend, x_bf16));
  EXPECT_EQ(history(linear.fp8().input), (std::vector<float>{0, 0, 0, amax}))
      << "one tensor rolls its history once";
}

TEST_P(LinearTest, ADisabledInnerScopeRunsInBf16) {
  Context context(*backend);
  const Autocast outer(context, true, recipe);
  const Autocast inner(context, false);
  Linear::Saved saved;
  forward(context, &saved);
  EXPECT_EQ(linear.fp8().gemms[0].a, DType::bf16);
  EXPECT_EQ(linear.fp8().gemms[0].fp8_runs, 0);
  EXPECT_EQ(linear.fp8().gemms[0].other_runs, 1);
}

TEST_P(LinearTest, WrongInputsAreErrors) {
  Context context(*backend);
  const Tensor narrow = backend->allocate(DType::bf16, {kRows, kIn - 1});
  EXPECT_THROW(linear.forward(context, Output{narrow, {}, {}}, nullptr), Error);
  const Autocast scope(context, true, recipe);
  EXPECT_THROW(linear.forward(context, Output{x_bf16, {}, {}}, nullptr), Error)
      << "high precision inside FP8 is no silent fall-back";
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
