/// Linears whose three GEMMs run in different precisions: each is the GEMM it would be alone.
#include "quaver/linear.h"
#include "support/test_backends.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

constexpr std::int64_t kRows = 5, kIn = 7, kOut = 9, kBiasBegin = 2, kBiasCount = 5;

std::vector<float> random_values(std::int64_t count, std::uint64_t stream, float size = 1.0f) {
  const Random random(1, stream);
  std::vector<float> values(count);
  for (std::int64_t i = 0; i < count; ++i) values[i] = size * random.normal(i);
  return values;
}

GemmPolicies policies(bool fprop, bool dgrad, bool wgrad) {
  return {{{fprop, ""}, {dgrad, ""}, {wgrad, ""}}};
}

GemmPolicies policies_of_mask(int mask) {
  return policies(mask & 1, mask & 2, mask & 4);
}

std::string describe(int mask) {
  const auto type = [&](int bit) { return mask & bit ? " fp8" : " bf16"; };
  return std::string("fprop") + type(1) + ", dgrad" + type(2) + ", wgrad" + type(4);
}

class LinearPolicyTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());
  DelayedScaling recipe{.amax_history_len = 4};
  std::vector<float> w = random_values(kOut * kIn, 1), b = random_values(kBiasCount, 2);

  std::unique_ptr<Linear> make_linear(const GemmPolicies& policy) {
    auto linear = std::make_unique<Linear>(*backend, Linear::Options{kIn, kOut, kBiasBegin, kBiasCount});
    backend->copy_from_host(w.data(), linear->weight().value);
    backend->copy_from_host(b.data(), linear->bias()->value);
    linear->set_policy(policy);
    return linear;
  }
  Tensor bf16(std::int64_t rows, std::int64_t cols, std::uint64_t stream, float size) {
    return upload(*backend, random_values(rows * cols, stream, size), {rows, cols}, DType::bf16);
  }
  float scale_of(const std::shared_ptr<ScalingSlot>& slot) {
    return slot ? download(*backend, slot->scale)[0] : 1.0f;
  }
  /// A cast that is none of Linear's.
  GemmOperand quantized(const Tensor& x, DType format, float scale) {
    QuantizedTensor q;
    q.bytes = backend->allocate(format, x.shape());
    if (backend->needs_transposed_fp8()) q.transposed = backend->allocate(format, {x.cols(), x.rows()});
    q.scale_inv = backend->allocate(DType::f32, {1});
    backend->cast(x, {{}, q, {format, upload(*backend, std::vector<float>{scale}, {1}), {}, {}}});
    return q;
  }
  Tensor converted_weight() {
    Tensor copy = backend->allocate(DType::bf16, {kOut, kIn});
    backend->convert(upload(*backend, w, {kOut, kIn}), copy);
    return copy;
  }
  Tensor full_bias() {
    std::vector<float> full(kOut);
    std::copy(b.begin(), b.end(), full.begin() + kBiasBegin);
    return upload(*backend, full, {kOut});
  }
  void expect_trace(const std::shared_ptr<ScalingSlot>& slot, bool used, const std::string& what) {
    if (!slot) {
      EXPECT_FALSE(used) << what;
      return;
    }
    const auto history = download(*backend, slot->amax_history);
    EXPECT_EQ(history.back() > 0, used) << what;
    EXPECT_EQ(history.front(), 0) << what << ": an amax was staged and never taken in";
    EXPECT_EQ(scale_of(slot) != 1, used) << what;
  }
  void check_mix(int mask);
};

void LinearPolicyTest::check_mix(int mask) {
  const bool fprop = mask & 1, dgrad = mask & 2, wgrad = mask & 4;
  const auto linear = make_linear(policies_of_mask(mask));
  Context context(*backend);
  const Tensor dw = backend->allocate(DType::f32, {kOut, kIn}),
               db = backend->allocate(DType::f32, {kBiasCount});
  backend->fill(db, 0);
  const GemmOperand w_bf16 = converted_weight();
  GemmOperand w_fp8;
  for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
    const std::string what =
        GetParam() + ": " + describe(mask) + ", micro-batch " + std::to_string(micro_batch);
    const Tensor x = bf16(kRows, kIn, 10 + micro_batch, 1 + micro_batch),
                 dy = bf16(kRows, kOut, 20 + micro_batch, 0.01f);
    const Fp8State& state = linear->fp8();
    const GemmOperand x_fp8 = quantized(x, DType::e4m3, scale_of(state.input)),
                      dy_fp8 = quantized(dy, DType::e5m2, scale_of(state.grad_output));
    // Cast by the first micro-batch and kept: the weight does not change.
    if (micro_batch == 0) w_fp8 = quantized(upload(*backend, w, {kOut, kIn}), DType::e4m3, 1);
    const Tensor y_expected = backend->allocate(DType::bf16, {kRows, kOut}),
                 dx_expected = backend->allocate(DType::bf16, {kRows, kIn});
    backend->gemm(Gemm::fprop, fprop ? x_fp8 : x, fprop ? w_fp8 : w_bf16, full_bias(), false, y_expected);
    backend->gemm(Gemm::dgrad, dgrad ? dy_fp8 : dy, dgrad ? w_fp8 : w_bf16, {}, false, dx_expected);
    backend->gemm(Gemm::wgrad, wgrad ? dy_fp8 : dy, wgrad ? x_fp8 : x, {}, micro_batch > 0, dw);
    backend->sum_rows(dy.columns(kBiasBegin, kBiasCount), db);

    Linear::Saved saved;
    Tensor y;
    {
      const Autocast scope(context, true, recipe);
      y = linear->forward(context, linear->cast_input(context, x), &saved);
    }
    EXPECT_EQ(saved.x.defined(), !wgrad) << what;
    EXPECT_EQ(saved.x_fp8.defined(), wgrad) << what;
    EXPECT_EQ(saved.w.defined(), !dgrad) << what;
    EXPECT_EQ(saved.w_fp8.defined(), dgrad) << what;
    const Tensor dx = backend->allocate(DType::bf16, {kRows, kIn});
    {
      const BackwardPass pass(context);
      linear->backward(context, saved, linear->cast_output_gradient(context, saved, dy), dx);
    }
    EXPECT_EQ(download(*backend, y), download(*backend, y_expected)) << what;
    EXPECT_EQ(download(*backend, dx), download(*backend, dx_expected)) << what;
    EXPECT_EQ(download(*backend, linear->weight().gradient), download(*backend, dw)) << what;
    EXPECT_EQ(download(*backend, linear->bias()->gradient), download(*backend, db)) << what;
  }
  EXPECT_EQ(linear->weight_casts(), (fprop || dgrad) + (!fprop || !dgrad)) << describe(mask);
  expect_trace(linear->fp8().input, fprop || wgrad, describe(mask) + ": input");
  expect_trace(linear->fp8().weight, fprop || dgrad, describe(mask) + ": weight");
  expect_trace(linear->fp8().grad_output, dgrad || wgrad, describe(mask) + ": grad_output");
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(linear->fp8().gemms[i].fp8_runs, mask >> i & 1 ? 3 : 0) << describe(mask);
    EXPECT_EQ(linear->fp8().gemms[i].other_runs, mask >> i & 1 ? 0 : 3) << describe(mask);
  }
}

TEST_P(LinearPolicyTest, EveryMixComputesTheGemmsThatItIsMadeOf) {
  for (int mask = 0; mask < 8; ++mask) check_mix(mask);
}

TEST_P(LinearPolicyTest, ProducersWriteOnlyWhatIsRead) {
  Context context(*backend);
  const auto linear = make_linear(policies(true, true, false));
  const Autocast scope(context, true, recipe);
  const Output training = linear->make_input(context, kRows);
  EXPECT_TRUE(training.quantized.defined());
  EXPECT_TRUE(training.values.defined()) << "wgrad reads it in bf16";
  {
    const NoGradients evaluation(context);
    EXPECT_TRUE(linear->make_input(context, kRows).quantized.defined());
    EXPECT_FALSE(linear->make_input(context, kRows).values.defined()) << "no wgrad will run";
    Linear::Saved saved;
    linear->forward(context, linear->cast_input(context, bf16(kRows, kIn, 3, 1)), &saved);
    EXPECT_EQ(saved.rows, 0) << "no backward will run";
  }
  linear->set_policy(policies(false, true, true));
  const NoGradients evaluation(context);
  EXPECT_FALSE(linear->make_input(context, kRows).quantized.defined());
}

TEST_P(LinearPolicyTest, AProducerAndACastWriteTheSameMixedInput) {
  Context context(*backend);
  const auto linear = make_linear(policies(false, true, true));
  const Autocast scope(context, true, recipe);
  const Tensor x = bf16(kRows, kIn, 3, 1);
  const Output fused = linear->make_input(context, kRows), cast = linear->cast_input(context, x);
  backend->cast(x, fused);
  EXPECT_EQ(download(*backend, fused.values), download(*backend, cast.values));
  EXPECT_EQ(download(*backend, fused.quantized.bytes), download(*backend, cast.quantized.bytes));
}

TEST_P(LinearPolicyTest, SiblingsOfDifferentPolicyReadOneInput) {
  for (const bool leader_in_fp8 : {true, false}) {
    Context context(*backend);
    const bool sibling_in_fp8 = !leader_in_fp8;
    const auto leader = make_linear(policies(leader_in_fp8, leader_in_fp8, leader_in_fp8));
    const auto sibling = make_linear(policies(sibling_in_fp8, sibling_in_fp8, sibling_in_fp8));
    sibling->share_input_of(*leader);
    const Tensor x = bf16(kRows, kIn, 3, 1);
    Linear::Saved of_leader, of_sibling;
    {
      const Autocast scope(context, true, recipe);
      const Output input = leader->cast_input(context, x);
      leader->forward(context, input, &of_leader);
      sibling->forward(context, input, &of_sibling);
    }
    EXPECT_EQ(of_leader.x_fp8.defined(), leader_in_fp8);
    EXPECT_EQ(of_sibling.x_fp8.defined(), sibling_in_fp8);
    EXPECT_EQ(leader->fp8().gemms[0].fp8_runs, leader_in_fp8);
    EXPECT_EQ(sibling->fp8().gemms[0].fp8_runs, sibling_in_fp8);
    expect_trace(leader->fp8().input, true, "the input of both");
    expect_trace(leader->fp8().weight, leader_in_fp8, "the leader's weight");
    expect_trace(sibling->fp8().weight, sibling_in_fp8, "the sibling's weight");
  }
}

TEST_P(LinearPolicyTest, AModuleWithoutFp8HasNoFp8State) {
  Context context(*backend);
  const auto linear = make_linear(policies(false, false, false));
  const Autocast scope(context, true, recipe);
  const Tensor x = bf16(kRows, kIn, 3, 1);
  linear->forward(context, linear->cast_input(context, x), nullptr);
  EXPECT_EQ(linear->fp8().input, nullptr);
  EXPECT_FALSE(linear->fp8().recipe.has_value());
}

TEST_P(LinearPolicyTest, AnOperandInTheWrongFormIsAnErrorThatNamesTheGemm) {
  Context context(*backend);
  const auto linear = make_linear(policies(true, true, false));
  const Autocast scope(context, true, recipe);
  Output input = linear->make_input(context, kRows);
  input.values = Tensor();
  Linear::Saved saved;
  try {
    linear->forward(context, input, &saved);
    FAIL() << "wgrad has no input";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("wgrad"), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearPolicyTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
