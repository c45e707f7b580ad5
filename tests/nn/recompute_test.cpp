/// model.recompute: backward computes activations again, and nobody can tell from any number.
#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "support/saved_bytes.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

constexpr std::int64_t kBatch = 2, kLength = 11;

ModelConfig small_config() {
  ModelConfig config;
  config.width = 24;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.ffn_width = 40;
  config.vocab = 33;
  config.context = 12;
  config.init_std = 0.2f;
  return config;
}

/// Every gate, norm, activation and position once, packed and separate, with and without biases.
std::vector<ModelConfig> forms() {
  std::vector<ModelConfig> all(4, small_config());
  all[0].gate = GateKind::none;
  all[0].norm = NormKind::layer;
  all[0].position = PositionKind::learned;
  all[0].mlp = Activation::gelu;
  all[1].gate = GateKind::headwise;
  all[1].packed_qkv = false;
  all[1].qk_norm = QkNorm::pre_rope;
  all[1].gate_activation = GateActivation::silu;
  all[2].gate = GateKind::elementwise;
  all[2].mlp = Activation::geglu;
  all[2].packed_gate_up = true;
  all[2].qkv_bias = all[2].gate_bias = all[2].out_bias = all[2].mlp_bias = true;
  all[3].gate = GateKind::headwise;
  all[3].qk_norm = QkNorm::post_rope;
  all[3].gate_activation = GateActivation::sigmoid2;
  return all;
}

/// Everything that a step leaves behind.
struct Traces : ModuleVisitor {
  explicit Traces(Backend& b) : backend(b) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    gradients[name] = download(backend, parameter.gradient);
  }
  void linear(const std::string& name, Linear& linear) override {
    const Fp8State& fp8 = linear.fp8();
    for (const auto& slot : {fp8.input, fp8.weight, fp8.grad_output}) {
      if (!slot) continue;
      std::vector<std::int64_t> counts(kCastCounters);
      backend.copy_to_host(slot->counters, counts.data());
      counters[name].push_back(counts);
      scales[name].push_back(download(backend, slot->scale));
      scales[name].push_back(download(backend, slot->amax_history));
    }
    for (const GemmRecord& gemm : fp8.gemms) runs[name].emplace_back(gemm.a, gemm.fp8_runs, gemm.other_runs);
    casts[name] = linear.weight_casts();
  }
  Backend& backend;
  std::map<std::string, std::vector<float>> gradients;
  std::map<std::string, std::vector<std::vector<float>>> scales;
  std::map<std::string, std::vector<std::vector<std::int64_t>>> counters;
  std::map<std::string, std::vector<std::tuple<DType, std::int64_t, std::int64_t>>> runs;
  std::map<std::string, std::int64_t> casts;
};

class RecomputeTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());

  Tensor random_ids(std::int64_t vocab, std::uint64_t stream) {
    const Random random(5, stream);
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < kBatch * kLength; ++i)
      ids.push_back(static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(i), vocab)));
    return upload(*backend, ids, {kBatch * kLength});
  }
  TokenBatch tokens(const ModelConfig& config, std::uint64_t stream) {
    std::vector<std::int32_t> positions;
    for (std::int64_t i = 0; i < kBatch * kLength; ++i)
      positions.push_back(static_cast<std::int32_t>(i % kLength));
    return {kBatch,
            kLength,
            random_ids(config.vocab, stream),
            upload(*backend, positions, {kBatch * kLength}),
            {}};
  }

  using BetweenPasses = std::function<void(LanguageModel&, Context&)>;
  /// Three micro-batches, whose scales all differ.
  Traces train(ModelConfig config, Recompute recompute, bool fp8, const GemmPolicies& policy = {},
               const BetweenPasses& between = {},
               const Recipe& recipe = DelayedScaling{.amax_history_len = 3}, bool smooth = false) {
    config.recompute = recompute;
    LanguageModel model(backend, config, 1);
    struct SetPolicy : ModuleVisitor {
      SetPolicy(const GemmPolicies& p, bool s) : policy(p), smooth(s) {}
      void linear(const std::string& name, Linear& linear) override {
        linear.set_policy(policy);
        if (smooth && name.ends_with("down_proj")) linear.smooth_input(true);
      }
      const GemmPolicies& policy;
      bool smooth;
    } set(policy, smooth);
    model.visit("", set);
    Context context(*backend);
    for (std::uint64_t step = 0; step < 3; ++step) {
      context.set_noise(4, step);
      LanguageModel::Saved saved;
      const Tensor losses = backend->allocate(DType::f32, {kBatch * kLength});
      Output dlogits;
      {
        const Autocast scope(context, fp8, recipe);
        const Tensor y = model.forward(context, tokens(config, step), &saved);
        dlogits = model.make_logits_gradient(context, saved);
        backend->cross_entropy(y, random_ids(config.vocab, 100 + step), 1.0f / 22, losses, dlogits);
      }
      if (between) between(model, context);
      const BackwardPass pass(context);
      model.backward(context, saved, dlogits);
    }
    Traces traces(*backend);
    model.visit("", traces);
    return traces;
  }
  static void expect_equal(const Traces& a, const Traces& b, const std::string& what) {
    EXPECT_EQ(a.gradients, b.gradients) << what;
    EXPECT_EQ(a.scales, b.scales) << what;
    EXPECT_EQ(a.counters, b.counters) << what;
    EXPECT_EQ(a.runs, b.runs) << what;
    EXPECT_EQ(a.casts, b.casts) << what;
  }
  std::int64_t bytes_kept(Recompute recompute, bool fp8) {
    ModelConfig config = small_config();
    config.recompute = recompute;
    return testing::saved_bytes(backend, config, tokens(config, 0), fp8);
  }
};

TEST_P(RecomputeTest, GradientsScalesAndCountersAreTheSameBitsInEveryForm) {
  int form = 0;
  for (const ModelConfig& config : forms()) {
    for (const bool fp8 : {true, false}) {
      if (GetParam() == "emulation" && (form != 2 || !fp8)) continue;  // seconds for each
      const Traces expected = train(config, Recompute::none, fp8);
      ASSERT_GT(expected.gradients.size(), 10u);
      for (const Recompute recompute : {Recompute::gated, Recompute::attention, Recompute::block}) {
        expect_equal(train(config, recompute, fp8), expected,
                     "form " + std::to_string(form) + (fp8 ? ", fp8" : ", bf16"));
      }
    }
    ++form;
  }
}

TEST_P(RecomputeTest, SlowEveryRecipeAndItsRandomNumbers) {
  std::vector<Recipe> recipes = {CurrentScaling{}};
  if (backend->why_no_cast(BlockScaling{}.cast_of(OperandRole::input, Gemm::fprop)).empty())
    recipes.emplace_back(BlockScaling{});
  if (backend->mixes_operands()) {
    // NVFP4 draws only for gradients; this draws wherever it casts, so in the forward that is run again too.
    const auto rounds_at_random =
        std::make_shared<const CustomScaling::CastOf>([](OperandRole role, Gemm gemm) {
          OperandCast cast = Nvfp4Scaling{}.cast_of(role, gemm);
          cast.stochastic = true;
          return cast;
        });
    recipes.insert(recipes.end(),
                   {Mxfp8Scaling{}, Nvfp4Scaling{}, CustomScaling{"random rounding", rounds_at_random}});
  }
  const auto move_noise = [](LanguageModel&, Context& context) { context.set_noise(4, 100); };
  for (const Recipe& recipe : recipes) {
    const Traces expected = train(small_config(), Recompute::none, true, {}, {}, recipe);
    const Traces moved = train(small_config(), Recompute::none, true, {}, move_noise, recipe);
    for (const Recompute recompute : {Recompute::gated, Recompute::attention, Recompute::block}) {
      expect_equal(train(small_config(), recompute, true, {}, {}, recipe), expected, describe(recipe));
      // Backward draws at the new place, what is computed again at its own.
      expect_equal(train(small_config(), recompute, true, {}, move_noise, recipe), moved, describe(recipe));
    }
  }
}

TEST_P(RecomputeTest, AnInputIsSmoothedTheSameWayAgain) {
  const auto evaluate = [&](LanguageModel& model, Context& context) {
    const NoGradients evaluation(context);
    const Autocast scope(context, true, DelayedScaling{.amax_history_len = 3});
    model.forward(context, tokens(model.config(), 77), nullptr);
  };
  const bool slow = GetParam() == "emulation";  // seconds for each training
  for (const Recipe& recipe : {Recipe(DelayedScaling{.amax_history_len = 3}), Recipe(CurrentScaling{})}) {
    if (slow && !is_delayed(recipe)) continue;
    const Traces expected = train(small_config(), Recompute::none, true, {}, {}, recipe, true);
    EXPECT_NE(expected.gradients, train(small_config(), Recompute::none, true, {}, {}, recipe).gradients);
    for (const Recompute recompute : {Recompute::gated, Recompute::attention, Recompute::block}) {
      if (slow && recompute != Recompute::block) continue;
      expect_equal(train(small_config(), recompute, true, {}, {}, recipe, true), expected, describe(recipe));
      if (slow) continue;
      EXPECT_EQ(train(small_config(), recompute, true, {}, evaluate, recipe, true).gradients,
                expected.gradients);
    }
  }
}

TEST_P(RecomputeTest, ProductsOfBothPrecisionsInOneModule) {
  for (const GemmPolicies& policy : {GemmPolicies{{{false, ""}, {true, ""}, {true, ""}}},
                                     GemmPolicies{{{true, ""}, {false, ""}, {false, ""}}}}) {
    const Traces expected = train(small_config(), Recompute::none, true, policy);
    for (const Recompute recompute : {Recompute::gated, Recompute::attention, Recompute::block})
      expect_equal(train(small_config(), recompute, true, policy), expected, "mixed");
  }
}

TEST_P(RecomputeTest, AnEvaluationBetweenForwardAndBackwardChangesNothing) {
  const auto evaluate = [&](LanguageModel& model, Context& context) {
    const NoGradients evaluation(context);
    const Autocast scope(context, false);  // in BF16: the FP8 copies of weights are given up
    model.forward(context, tokens(model.config(), 77), nullptr);
  };
  const Traces expected = train(small_config(), Recompute::none, true, {}, evaluate);
  for (const Recompute recompute : {Recompute::gated, Recompute::attention, Recompute::block}) {
    const Traces found = train(small_config(), recompute, true, {}, evaluate);
    EXPECT_EQ(found.gradients, expected.gradients);
  }
}

TEST_P(RecomputeTest, LessIsKeptForBackward) {
  for (const bool fp8 : {true, false}) {
    const std::int64_t all = bytes_kept(Recompute::none, fp8),
                       attention = bytes_kept(Recompute::attention, fp8),
                       block = bytes_kept(Recompute::block, fp8);
    EXPECT_LT(attention, all);
    const std::int64_t gated = bytes_kept(Recompute::gated, fp8);
    if (fp8 && !backend->needs_transposed_fp8()) {
      EXPECT_EQ(gated, all) << "FP8 copies are formed again anyway";
    } else {
      EXPECT_LT(gated, all);
    }
    EXPECT_LT(block, attention);
    // What a block keeps: its input, in BF16. The head keeps its input and norm statistics.
    const std::int64_t rows = kBatch * kLength, inputs = 2 * rows * 24 * 2;
    EXPECT_GE(block, inputs);
    EXPECT_LT(block, 3 * inputs);
  }
}

/// The emulation, and a device if there is one.
std::vector<std::string> device_backends() {
  std::vector<std::string> names = testing::test_backends();
  std::erase_if(names, [](const std::string& name) { return name == "reference" || name == "cpu"; });
  return names;
}

INSTANTIATE_TEST_SUITE_P(Backends, RecomputeTest, ::testing::Values("reference", "cpu"),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(SlowBackends, RecomputeTest, ::testing::ValuesIn(device_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
