/// The rules of docs/fp8-rules.md, each under its number.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "quaver/linear.h"
#include "support/quantized_codes.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

using Floats = std::vector<float>;

Floats random_values(std::int64_t count, std::uint64_t stream, float size = 1) {
  const Random random(3, stream);
  Floats values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(size * random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

float max_abs(const Floats& values) {
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::fabs(v));
  return amax;
}

constexpr std::int64_t kRows = 5, kIn = 17, kOut = 9;
const DelayedScaling kRecipe{.amax_history_len = 3};

class Fp8RulesTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());

  /// A Linear whose weight depends on the stream alone.
  std::unique_ptr<Linear> make_linear(std::uint64_t stream, std::int64_t in = kIn, std::int64_t out = kOut) {
    auto linear = std::make_unique<Linear>(*backend, Linear::Options{in, out});
    const Floats w = random_values(in * out, stream, 0.3f);
    backend->copy_from_host(w.data(), linear->weight().value);
    ++linear->weight().version;
    return linear;
  }
  Tensor real(std::int64_t rows, std::int64_t cols, std::uint64_t stream, float size = 1) {
    return upload(*backend, random_values(rows * cols, stream, size), {rows, cols}, DType::bf16);
  }
  Tensor forward(Linear& linear, Context& context, const Tensor& x, Linear::Saved* saved = nullptr) {
    return linear.forward(context, linear.cast_input(context, x), saved);
  }
  Tensor backward(Linear& linear, Context& context, const Linear::Saved& saved, const Tensor& dy) {
    Tensor dx = backend->allocate(DType::bf16, {saved.rows, linear.options().in_features});
    linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy), dx);
    return dx;
  }
  float scale(const std::shared_ptr<ScalingSlot>& slot) { return download(*backend, slot->scale)[0]; }
  Floats history(const std::shared_ptr<ScalingSlot>& slot) { return download(*backend, slot->amax_history); }
  std::vector<std::int64_t> counters(const std::shared_ptr<ScalingSlot>& slot) {
    std::vector<std::int64_t> counts(kCastCounters);
    backend->copy_to_host(slot->counters, counts.data());
    return counts;
  }
};

TEST_P(Fp8RulesTest, Rule1ADisabledInnerScopeTakesItsModulesOutOfFp8AndNoOthers) {
  const auto before = make_linear(1), inside = make_linear(2), after = make_linear(3);
  Context context(*backend);
  const Tensor x = real(kRows, kIn, 4);
  Linear::Saved saved;
  {
    const Autocast outer(context, true, kRecipe);
    forward(*before, context, x);
    {
      const Autocast inner(context, false);
      forward(*inside, context, x, &saved);
    }
    forward(*after, context, x);
  }
  {
    const BackwardPass pass(context);  // follows what forward did, whatever scope it runs in
    backward(*inside, context, saved, real(kRows, kOut, 5));
  }
  for (const auto* linear : {&before, &after}) {
    EXPECT_EQ((*linear)->fp8().gemms[0].a, DType::e4m3);
    EXPECT_GT(history((*linear)->fp8().input).back(), 0);
  }
  for (const GemmRecord& gemm : inside->fp8().gemms) EXPECT_EQ(gemm.a, DType::bf16);
  EXPECT_EQ(inside->fp8().input, nullptr) << "no state at all";
}

TEST_P(Fp8RulesTest, RecordsNameTheKernelThatRan) {
  const auto linear = make_linear(1);
  const auto kernel_of = [&](bool fp8, std::int64_t rows) {
    Context context(*backend);
    const Autocast scope(context, fp8, kRecipe);
    forward(*linear, context, real(rows, kIn, 4));
    return linear->fp8().gemms[0].kernel;
  };
  const std::string in_fp8 = kernel_of(true, kRows), in_bf16 = kernel_of(false, kRows);
  EXPECT_EQ(kernel_of(true, kRows), in_fp8);
  EXPECT_FALSE(in_bf16.empty());
  if (GetParam() == "reference") {
    EXPECT_EQ(in_fp8, "reference");
  }
  if (GetParam() != "cpu") return;
  EXPECT_NE(in_fp8.find("e4m3, widened to bf16 while packing, few rows"), std::string::npos) << in_fp8;
  EXPECT_EQ(in_bf16.find("widened"), std::string::npos) << in_bf16;
  EXPECT_NE(kernel_of(true, 3000).find("packed stripes"), std::string::npos);
}

TEST_P(Fp8RulesTest, Rule2AnInnerScopesRecipeHoldsForItsModulesWhenTheOutermostScopeUpdates) {
  const auto outside = make_linear(1), inside = make_linear(1);
  Context context(*backend);
  const Tensor x = real(kRows, kIn, 4), dy = real(kRows, kOut, 5);
  Linear::Saved outside_saved, inside_saved;
  {
    const Autocast outer(context, true, kRecipe);
    forward(*outside, context, x, &outside_saved);
    {
      const Autocast inner(context, true,
                           DelayedScaling{.margin = 2, .fp8_format = Fp8Format::e4m3, .amax_history_len = 5});
      forward(*inside, context, x, &inside_saved);
    }
    EXPECT_EQ(scale(inside->fp8().input), 1) << "the end of an inner scope updates nothing";
  }
  {
    const BackwardPass pass(context);
    backward(*outside, context, outside_saved, dy);
    backward(*inside, context, inside_saved, dy);
  }
  EXPECT_EQ(scale(outside->fp8().input), 4 * scale(inside->fp8().input)) << "margin 2";
  EXPECT_EQ(history(inside->fp8().input).size(), 5u);
  EXPECT_EQ(outside->fp8().gemms[1].a, DType::e5m2);
  EXPECT_EQ(inside->fp8().gemms[1].a, DType::e4m3);
  EXPECT_EQ(scale(outside->fp8().grad_output), 57344 / max_abs(download(*backend, dy)));
  EXPECT_EQ(scale(inside->fp8().grad_output), 112 / max_abs(download(*backend, dy)));
}

TEST_P(Fp8RulesTest, Rule3CalibrationComputesInBf16AndRecordsTheAmaxesOfFp8) {
  const auto calibrated = make_linear(1), in_bf16 = make_linear(1), in_fp8 = make_linear(1);
  const Tensor x = real(kRows, kIn, 4, 7), dy = real(kRows, kOut, 5, 0.01f);
  const auto run = [&](Linear& linear, bool enabled, bool calibrating) {
    Context context(*backend);
    Linear::Saved saved;
    Tensor y;
    {
      const Autocast scope(context, enabled, kRecipe, calibrating);
      y = forward(linear, context, x, &saved);
    }
    const BackwardPass pass(context);
    const Tensor dx = backward(linear, context, saved, dy);
    return std::vector<Floats>{download(*backend, y), download(*backend, dx),
                               download(*backend, linear.weight().gradient)};
  };
  EXPECT_EQ(run(*calibrated, false, true), run(*in_bf16, false, false)) << "BF16's numbers, to the bit";
  run(*in_fp8, true, false);
  const Fp8State &found = calibrated->fp8(), &expected = in_fp8->fp8();
  for (const auto slot : {&Fp8State::input, &Fp8State::weight, &Fp8State::grad_output}) {
    EXPECT_EQ(history(found.*slot), history(expected.*slot)) << "FP8's amaxes";
    EXPECT_EQ(scale(found.*slot), scale(expected.*slot));
    EXPECT_EQ(counters(found.*slot), std::vector<std::int64_t>(kCastCounters)) << "nothing was used in FP8";
  }
  for (const GemmRecord& gemm : found.gemms) {
    EXPECT_EQ(gemm.fp8_runs, 0);
    EXPECT_EQ(gemm.other_runs, 1);
  }
  // The first FP8 forward casts with these scales, the weight too.
  Context context(*backend);
  const Autocast scope(context, true, kRecipe);
  Linear::Saved saved;
  forward(*calibrated, context, x, &saved);
  EXPECT_EQ(download(*backend, saved.x_fp8.scale_inv)[0], 1 / scale(found.input));
  EXPECT_EQ(download(*backend, saved.w_fp8.scale_inv)[0], 1 / scale(found.weight));
}

TEST_P(Fp8RulesTest, Rule3CalibrationRecordsOnlyWhatWouldRunInFp8) {
  const auto linear = make_linear(1);
  linear->set_policy({{{false, "test"}, {false, "test"}, {false, "test"}}});
  Context context(*backend);
  {
    const Autocast scope(context, false, kRecipe, true);
    forward(*linear, context, real(kRows, kIn, 4));
  }
  EXPECT_EQ(linear->fp8().input, nullptr);
}

ModelConfig small_config() {
  ModelConfig config;
  config.width = 24;
  config.layers = 1;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.ffn_width = 40;
  config.vocab = 33;
  config.context = 12;
  config.init_std = 0.2f;
  return config;
}

/// A model in training, for a step at a time.
class InTraining {
 public:
  InTraining(const std::shared_ptr<Backend>& backend, Recipe recipe, std::uint64_t seed)
      : backend_(*backend), model_(backend, small_config(), seed), context_(*backend), recipe_(recipe) {}

  void step() {
    const std::int64_t rows = 10;
    std::vector<std::int32_t> ids, positions;
    for (std::int32_t i = 0; i < rows; ++i) {
      ids.push_back((7 * i + 3 * steps_) % 33);
      positions.push_back(i);
    }
    ++steps_;
    const Tensor tokens = upload(backend_, ids, {rows});
    LanguageModel::Saved saved;
    Output dlogits;
    {
      const Autocast scope(context_, true, recipe_);
      const Tensor y =
          model_.forward(context_, {1, rows, tokens, upload(backend_, positions, {rows}), {}}, &saved);
      dlogits = model_.make_logits_gradient(context_, saved);
      backend_.cross_entropy(y, tokens, 0.1f, backend_.allocate(DType::f32, {rows}), dlogits);
    }
    const BackwardPass pass(context_);
    model_.backward(context_, saved, dlogits);
  }

  std::vector<Floats> traces() {
    struct Visitor : ModuleVisitor {
      explicit Visitor(Backend& b) : backend(b) {}
      void parameter(const std::string& /*name*/, Parameter& parameter) override {
        all.push_back(download(backend, parameter.gradient));
      }
      void linear(const std::string& /*name*/, Linear& linear) override {
        for (const auto& slot : {linear.fp8().input, linear.fp8().weight, linear.fp8().grad_output}) {
          all.push_back(download(backend, slot->scale));
          all.push_back(download(backend, slot->amax_history));
        }
      }
      Backend& backend;
      std::vector<Floats> all;
    } visitor(backend_);
    model_.visit("", visitor);
    return visitor.all;
  }

 private:
  Backend& backend_;
  LanguageModel model_;
  Context context_;
  Recipe recipe_;
  std::int32_t steps_ = 0;
};

TEST_P(Fp8RulesTest, SlowRule4TwoModelsWithTwoRecipesDoNotMeet) {
  const DelayedScaling other{.margin = 1, .fp8_format = Fp8Format::e4m3, .amax_history_len = 2};
  InTraining a(backend, kRecipe, 1), b(backend, other, 2);
  for (int i = 0; i < 2; ++i) a.step(), b.step();
  InTraining a_alone(backend, kRecipe, 1), b_alone(backend, other, 2);
  for (int i = 0; i < 2; ++i) a_alone.step();
  for (int i = 0; i < 2; ++i) b_alone.step();
  EXPECT_EQ(a.traces(), a_alone.traces());
  EXPECT_EQ(b.traces(), b_alone.traces());
}

TEST_P(Fp8RulesTest, Rule5AModuleCalledTwiceInAScopeHasOneUpdateFromTheLargerAmax) {
  const auto linear = make_linear(1);
  Context context(*backend);
  const Tensor large = real(kRows, kIn, 4, 9), small = real(kRows, kIn, 5);
  const Tensor dy = real(kRows, kOut, 6);
  Linear::Saved first, second;
  {
    const Autocast scope(context, true, kRecipe);
    forward(*linear, context, large, &first);
    forward(*linear, context, small, &second);
  }
  const float amax = max_abs(download(*backend, large));
  EXPECT_EQ(history(linear->fp8().input), (Floats{0, 0, amax})) << "one roll";
  EXPECT_EQ(scale(linear->fp8().input), 448 / amax);
  EXPECT_EQ(counters(linear->fp8().input)[kCastElements], 2 * kRows * kIn);
  EXPECT_EQ(linear->weight_casts(), 1);
  {
    const BackwardPass pass(context);
    backward(*linear, context, second, dy);
    backward(*linear, context, first, dy);
  }
  EXPECT_EQ(history(linear->fp8().grad_output), (Floats{0, 0, max_abs(download(*backend, dy))}));
}

TEST_P(Fp8RulesTest, Rule6AModuleThatWasSkippedInAStepKeepsScaleAndHistory) {
  const auto used = make_linear(1), skipped = make_linear(2);
  Context context(*backend);
  for (int step = 0; step < 3; ++step) {
    const Autocast scope(context, true, kRecipe);
    forward(*used, context, real(kRows, kIn, 10 + step));
    if (step == 0) forward(*skipped, context, real(kRows, kIn, 20));
  }
  const float amax = max_abs(download(*backend, real(kRows, kIn, 20)));
  EXPECT_EQ(history(skipped->fp8().input), (Floats{0, 0, amax})) << "no roll without a cast";
  EXPECT_EQ(scale(skipped->fp8().input), 448 / amax);
  EXPECT_GT(history(used->fp8().input)[1], 0);
}

TEST_P(Fp8RulesTest, Rule7AWeightIsCastByTheFirstMicroBatchAndItsSlotRollsOnce) {
  const auto linear = make_linear(1);
  Context context(*backend);
  for (int step = 0; step < 2; ++step) {
    ++linear->weight().version;
    for (int micro_batch = 0; micro_batch < 3; ++micro_batch) {
      const Autocast scope(context, true, kRecipe);
      forward(*linear, context, real(kRows, kIn, 10 + 3 * step + micro_batch));
    }
  }
  EXPECT_EQ(linear->weight_casts(), 2);
  EXPECT_EQ(history(linear->fp8().weight)[0], 0);
  EXPECT_EQ(counters(linear->fp8().weight)[kCastElements], 2 * kIn * kOut);
  EXPECT_EQ(counters(linear->fp8().input)[kCastElements], 6 * kRows * kIn);
  EXPECT_EQ(history(linear->fp8().input).back(), max_abs(download(*backend, real(kRows, kIn, 15))));
}

/// Two micro-batches of a step, with an evaluation between them in a scope that is enabled or not, or with none.
enum class Between { nothing, fp8, bf16 };

TEST_P(Fp8RulesTest, Rule8AnEvaluationLeavesNoTraceBetweenMicroBatches) {
  const auto train = [&](Between between) {
    const auto linear = make_linear(1);
    Context context(*backend);
    Linear::Saved saved;
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      {
        const Autocast scope(context, true, kRecipe);
        forward(*linear, context, real(kRows, kIn, 10 + micro_batch), &saved);
      }
      {
        const BackwardPass pass(context);
        backward(*linear, context, saved, real(kRows, kOut, 20 + micro_batch));
      }
      if (between == Between::nothing || micro_batch > 0) continue;
      const NoGradients evaluation(context);
      const Autocast scope(context, between == Between::fp8, kRecipe);
      forward(*linear, context, real(kRows, kIn, 30, 99));
    }
    return std::pair(linear->weight_casts(),
                     std::vector<Floats>{history(linear->fp8().input), history(linear->fp8().weight),
                                         history(linear->fp8().grad_output),
                                         download(*backend, linear->weight().gradient)});
  };
  const auto expected = train(Between::nothing);
  EXPECT_EQ(expected.first, 1);
  EXPECT_EQ(train(Between::fp8), expected);

  // The exception: in BF16 the copy is dropped, so the weight is cast again, with the scale that the first roll gave.
  const auto exception = train(Between::bf16);
  EXPECT_EQ(exception.first, 3) << "to FP8, to BF16, to FP8";
  const float amax = max_abs(random_values(kIn * kOut, 1, 0.3f));
  EXPECT_EQ(expected.second[1], (Floats{0, 0, amax}));
  EXPECT_EQ(exception.second[1], (Floats{0, amax, amax})) << "rolled twice";
  EXPECT_EQ(exception.second[0], expected.second[0]);
  EXPECT_EQ(exception.second[2], expected.second[2]);
}

/// y = x w^T of the FP8 numbers themselves, in double, and the sum of magnitudes.
std::pair<double, double> product(const Floats& x, const Floats& w, std::int64_t m, std::int64_t n,
                                  std::int64_t k, double scale_inv) {
  double sum = 0, magnitude = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    const double term = static_cast<double>(x[m * k + i]) * static_cast<double>(w[n * k + i]);
    sum += term, magnitude += std::fabs(term);
  }
  return {sum * scale_inv, magnitude * scale_inv};
}

TEST_P(Fp8RulesTest, Rule9OddDimensionsRunInFp8) {
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{17, 1223}, {1223, 17}, {17, 50257}};
  for (const auto& [in, out] : sizes) {
    if (GetParam() == "emulation" && out == 50257) continue;  // seconds
    const auto linear = make_linear(1, in, out);
    Context context(*backend);
    const std::int64_t rows = 3;
    const Tensor x = real(rows, in, 4), dy = real(rows, out, 5);
    Linear::Saved saved;
    Tensor y, dx;
    for (int step = 0; step < 2; ++step) {
      {
        const Autocast scope(context, true, kRecipe);
        ++linear->weight().version;
        y = forward(*linear, context, x, &saved);
      }
      const BackwardPass pass(context);
      dx = backward(*linear, context, saved, dy);
    }
    for (const GemmRecord& gemm : linear->fp8().gemms) EXPECT_EQ(gemm.fp8_runs, 2);
    EXPECT_EQ(history(linear->fp8().input).back(), max_abs(download(*backend, x)));
    EXPECT_EQ(counters(linear->fp8().input)[kCastElements], 2 * rows * in) << "padding is not counted";
    const Floats x8 = testing::codes_of(*backend, saved.x_fp8), w8 = download(*backend, saved.w_fp8.bytes);
    const double scale_inv = static_cast<double>(download(*backend, saved.x_fp8.scale_inv)[0]) *
                             static_cast<double>(download(*backend, saved.w_fp8.scale_inv)[0]);
    const Floats found = download(*backend, y);
    for (std::int64_t i = 0; i < rows * out; ++i) {
      const auto [sum, magnitude] = product(x8, w8, i / out, i % out, in, scale_inv);
      // FP32 additions of exact products, and one rounding to BF16. Hopper's FP8 units keep about 14 bits of the
      // products that they add at once.
      const double addition = backend->device() == Device::cuda ? 0x1p-12 : static_cast<double>(in) * 0x1p-23;
      ASSERT_NEAR(found[i], sum, std::fabs(sum) * 0x1p-8 + magnitude * addition)
          << in << " -> " << out << " element " << i;
    }
    ASSERT_EQ(download(*backend, dx).size(), static_cast<std::size_t>(rows * in));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Fp8RulesTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
