/// What forward keeps for backward, byte by byte, and that what it does not keep comes back with the same bits.
#include <gtest/gtest.h>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "support/errors.h"
#include "support/saved_bytes.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

// Sizes that the arena does not round up.
constexpr std::int64_t kRows = 64, kWidth = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kFeedForward = 128,
                       kVocab = 64;
constexpr std::int64_t kBlock = 64;  ///< bytes of a tensor of one number

ModelConfig base_config() {
  ModelConfig config;
  config.width = kWidth;
  config.layers = 2;
  config.heads = kHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kHeadDim;
  config.ffn_width = kFeedForward;
  config.vocab = kVocab;
  config.context = kRows;
  return config;
}

/// docs/manual.md, "What is kept for backward": bytes of all layers, the last norm and lm_head.
/// `transposes`: the backend's products read transposed copies.
std::int64_t expected_bytes(const ModelConfig& config, bool fp8, bool transposes) {
  const std::int64_t q = kHeads * kHeadDim, kv = kKvHeads * kHeadDim, gate = gate_features(config);
  const std::int64_t statistics = config.norm == NormKind::layer ? 8 : 4;
  const std::int64_t element = fp8 ? 1 : 2;  // of a Linear's input
  const bool keeps_products = (!fp8 || transposes) && config.recompute != Recompute::gated;
  const bool turned_apart = config.qk_norm != QkNorm::none;
  // Stream, statistics and result of a norm; and so for the last one.
  const std::int64_t norm = 2 * kWidth + statistics + element * kWidth;
  std::int64_t layer = 2 * norm;
  layer += 2 * (q + 2 * kv + gate) + (turned_apart ? 2 * (q + kv) : 0);
  layer += 2 * q + 4 * kHeads;
  if (gate > 0 && keeps_products) layer += element * q;
  if (gate == 0 && fp8) layer += q;  // the cast of o; in BF16 it is o itself
  layer += config.mlp == Activation::gelu ? 2 * kFeedForward : 4 * kFeedForward;
  if (keeps_products) layer += element * kFeedForward;
  std::int64_t bytes = kRows * (config.layers * layer + norm);
  if (fp8) {
    // Inverse scales of the casts that are kept, and one tensor of the scales of those that are formed again.
    const std::int64_t casts = 2 + (gate == 0 || keeps_products ? 1 : 0) + (keeps_products ? 1 : 0);
    bytes += kBlock * (config.layers * casts + 1) + (keeps_products ? 0 : kBlock);
  }
  return bytes;
}

class SavedMemoryTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());

  TokenBatch tokens() {
    std::vector<std::int32_t> ids, positions;
    for (std::int32_t i = 0; i < kRows; ++i) {
      ids.push_back(i * 37 % static_cast<std::int32_t>(kVocab));
      positions.push_back(i);
    }
    return {1, kRows, upload(*backend, ids, {kRows}), upload(*backend, positions, {kRows}), {}};
  }
};

TEST_P(SavedMemoryTest, IsWhatTheDocumentSays) {
  std::vector<ModelConfig> forms(6, base_config());
  forms[1].gate = GateKind::none;
  forms[1].mlp = Activation::gelu;
  forms[2].gate = GateKind::headwise;
  forms[2].packed_qkv = false;
  forms[2].norm = NormKind::layer;
  forms[3].qk_norm = QkNorm::pre_rope;
  forms[3].mlp = Activation::geglu;
  forms[3].packed_gate_up = true;
  forms[4].recompute = Recompute::gated;
  forms[4].packed_gate_up = true;
  forms[5].recompute = Recompute::gated;
  forms[5].gate = GateKind::headwise;
  forms[5].packed_qkv = false;
  for (std::size_t form = 0; form < forms.size(); ++form) {
    for (const bool fp8 : {true, false})
      EXPECT_EQ(testing::saved_bytes(backend, forms[form], tokens(), fp8),
                expected_bytes(forms[form], fp8, backend->needs_transposed_fp8()))
          << "form " << form << (fp8 ? ", fp8" : ", bf16");
  }
}

/// A Linear behind SwiGLU, with and without forming its input again.
struct Projection {
  Projection(Backend& b, bool again, bool real) : backend(b), linear(b, {kFeedForward, kWidth, 0, kWidth}) {
    backend.fill_normal(linear.weight().value, 0, 0.1f, 1, 1);
    backend.fill(linear.bias()->value, 0);
    ++linear.weight().version;
    ++linear.bias()->version;
    if (again) linear.form_input_again(true, real);
  }
  /// Everything that `steps` of forward and backward leave behind.
  std::vector<std::vector<float>> train(bool fp8, const GemmPolicies& policy, const Recipe& recipe) {
    linear.set_policy(policy);
    Context context(backend);
    std::vector<std::vector<float>> traces;
    for (std::uint64_t step = 0; step < 3; ++step) {
      Linear::Saved saved;
      const Tensor gate = random(2 * step, 2.0f), up = random(2 * step + 1, 1.0f);
      {
        const Autocast scope(context, fp8, recipe);
        const Output h = linear.make_input(context, kRows);
        backend.activation(Activation::swiglu, gate, up, h);
        traces.push_back(download(backend, linear.forward(context, h, &saved)));
        keep_scale(saved.x_quantizer.scale);
      }
      formed_again += saved.x_again;
      kept += saved.x.defined() || saved.x_fp8.defined();
      const BackwardPass pass(context);
      const Output dy = linear.cast_output_gradient(context, saved, random(100 + step, 0.01f, kWidth));
      const Tensor dx = random(0, 1.0f);
      linear.backward_input(context, saved, dy, dx);
      const Output dgate{random(0, 1), {}, {}}, dup{random(0, 1), {}, {}},
          h = linear.make_input_again(context, saved);
      backend.activation_backward(Activation::swiglu, dx, gate, up, dgate, dup, h);
      linear.backward_weight(context, saved, dy, h);
      for (const Tensor& result : {dx, dup.values, linear.weight().gradient, linear.bias()->gradient})
        traces.push_back(download(backend, result));
    }
    for (const auto& slot : {linear.fp8().input, linear.fp8().weight, linear.fp8().grad_output}) {
      if (!slot) continue;
      std::vector<std::int64_t> counts(kCastCounters);
      backend.copy_to_host(slot->counters, counts.data());
      traces.emplace_back(counts.begin(), counts.end());
      traces.push_back(download(backend, slot->scale));
      traces.push_back(download(backend, slot->amax_history));
    }
    return traces;
  }
  Tensor random(std::uint64_t stream, float size, std::int64_t cols = kFeedForward) {
    const Random numbers(3, stream);
    std::vector<float> values;
    for (std::int64_t i = 0; i < kRows * cols; ++i) values.push_back(size * numbers.normal(i));
    return upload(backend, values, {kRows, cols}, DType::bf16);
  }
  /// As LanguageModel does: the end of the scope changes the slot's.
  void keep_scale(Tensor& scale) {
    if (!scale) return;
    const Tensor copy = backend.allocate(DType::f32, {1});
    backend.copy(scale, copy);
    scale = copy;
  }
  Backend& backend;
  Linear linear;
  int formed_again = 0, kept = 0;  ///< in how many steps
};

TEST_P(SavedMemoryTest, AnInputFormedAgainGivesTheBitsOfOneThatWasKept) {
  const DelayedScaling recipe{.amax_history_len = 3};
  const GemmPolicies in_fp8{}, wgrad_in_bf16{{{true, ""}, {true, ""}, {false, ""}}};
  struct Case {
    bool fp8, real;
    GemmPolicies policy;
    Recipe recipe;
    int formed_again;
  };
  const std::vector<Case> cases{{true, false, in_fp8, recipe, 3},
                                {false, true, in_fp8, recipe, 3},
                                {false, false, in_fp8, recipe, 0},
                                {true, true, wgrad_in_bf16, recipe, 0},
                                {true, true, in_fp8, CurrentScaling{}, 0}};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& [fp8, real, policy, scaling, formed_again] = cases[i];
    Projection again(*backend, true, real), kept(*backend, false, real);
    EXPECT_EQ(again.train(fp8, policy, scaling), kept.train(fp8, policy, scaling)) << "case " << i;
    EXPECT_EQ(again.formed_again, formed_again) << "case " << i;
    EXPECT_EQ(again.kept, 3 - formed_again) << "case " << i;
    EXPECT_EQ(kept.formed_again, 0);
  }
}

TEST_P(SavedMemoryTest, WhoOnlyCallsBackwardIsTold) {
  Projection projection(*backend, true, false);
  Linear& linear = projection.linear;
  Context context(*backend);
  Linear::Saved saved;
  {
    const Autocast scope(context, true, DelayedScaling{.amax_history_len = 3});
    const Output h = linear.make_input(context, kRows);
    backend->cast(projection.random(1, 1.0f), h);
    linear.forward(context, h, &saved);
  }
  const BackwardPass pass(context);
  const Output dy = linear.cast_output_gradient(context, saved, projection.random(2, 0.01f, kWidth));
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { linear.backward(context, saved, dy, {}); }),
                       "make_input_again"));
}

TEST_P(SavedMemoryTest, AnInputOfSeveralModulesIsKept) {
  Linear leader(*backend, {kWidth, kWidth, 0, 0}), sibling(*backend, {kWidth, kWidth, 0, 0});
  sibling.share_input_of(leader);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::usage, [&] { leader.form_input_again(true, false); }), "2 modules"));
}

/// The emulation, and a device if there is one.
std::vector<std::string> device_backends() {
  std::vector<std::string> names = testing::test_backends();
  std::erase_if(names, [](const std::string& name) { return name == "reference" || name == "cpu"; });
  return names;
}

INSTANTIATE_TEST_SUITE_P(Backends, SavedMemoryTest, ::testing::Values("reference", "cpu"),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(SlowBackends, SavedMemoryTest, ::testing::ValuesIn(device_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
