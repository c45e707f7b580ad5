/// The whole model: initialisation, masks, the key/value cache, and FP8 in every Linear. Its gradients are
/// checked against an independent implementation in tests/oracle.
#include "quaver/language_model.h"
#include "support/test_backends.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

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

class Collect : public ModuleVisitor {
 public:
  explicit Collect(Backend& backend) : backend_(backend) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    values[name] = download(backend_, parameter.value);
    if (parameter.has_gradient) gradients[name] = download(backend_, parameter.gradient);
  }
  void linear(const std::string& name, Linear& linear) override { linears[name] = &linear; }
  std::map<std::string, std::vector<float>> values, gradients;
  std::map<std::string, Linear*> linears;

 private:
  Backend& backend_;
};

TokenBatch token_batch(Backend& backend, const std::vector<std::int32_t>& tokens, std::int64_t batch,
                       std::int32_t first_position = 0, std::vector<std::int32_t> first_key = {}) {
  const auto rows = static_cast<std::int64_t>(tokens.size()), length = rows / batch;
  std::vector<std::int32_t> positions(rows);
  for (std::int64_t row = 0; row < rows; ++row)
    positions[row] = first_position + static_cast<std::int32_t>(row % length);
  TokenBatch result{batch, length, upload(backend, tokens, {rows}), upload(backend, positions, {rows}), {}};
  if (!first_key.empty()) result.first_key = upload(backend, first_key, {rows});
  return result;
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocab, std::uint64_t stream = 0) {
  const Random random(5, stream);
  std::vector<std::int32_t> tokens(count);
  for (std::int64_t i = 0; i < count; ++i) tokens[i] = static_cast<std::int32_t>(random.below(i, vocab));
  return tokens;
}

class LanguageModelTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());
  Collect collect(LanguageModel& model) {
    Collect result(*backend);
    model.visit("", result);
    return result;
  }
  std::vector<float> logits(LanguageModel& model, Context& context, const TokenBatch& batch) {
    const NoGradients evaluation(context);
    return download(*backend, model.forward(context, batch, nullptr));
  }
  /// All logits of the tokens that extend the sequences.
  std::vector<float> extend(LanguageModel& model, Context& context, const std::vector<std::int32_t>& tokens,
                            const std::vector<CacheExtension>& sequences) {
    const NoGradients evaluation(context);
    const Tensor on_device = upload(*backend, tokens, {static_cast<std::int64_t>(tokens.size())});
    return download(*backend, model.extend(context, on_device, sequences));
  }
};

TEST_P(LanguageModelTest, ParametersBearTheDocumentedNames) {
  ModelConfig config = small_config();
  config.packed_qkv = false;
  config.gate = GateKind::headwise;
  config.qk_norm = QkNorm::pre_rope;
  config.tie_embeddings = false;
  LanguageModel model(backend, config, 1);
  const Collect found = collect(model);
  for (const char* name :
       {"embedding.weight", "blocks.1.attention_norm.gain", "blocks.1.attention.q_proj.weight",
        "blocks.1.attention.k_proj.weight", "blocks.1.attention.v_proj.weight",
        "blocks.1.attention.gate_proj.weight", "blocks.1.attention.q_norm.gain",
        "blocks.1.attention.k_norm.gain", "blocks.1.attention.out_proj.weight", "blocks.1.mlp_norm.gain",
        "blocks.1.mlp.gate_proj.weight", "blocks.1.mlp.up_proj.weight", "blocks.1.mlp.down_proj.weight",
        "final_norm.gain", "lm_head.weight"}) {
    EXPECT_TRUE(found.values.contains(name)) << name;
  }
  EXPECT_EQ(found.linears.size(), 2u * 8 + 1);
  std::int64_t count = 0;
  for (const auto& [name, values] : found.values) count += static_cast<std::int64_t>(values.size());
  EXPECT_EQ(count, parameter_count(config));

  config.packed_qkv = config.packed_gate_up = true;
  LanguageModel packed_model(backend, config, 1);
  const Collect packed = collect(packed_model);
  for (const char* name : {"blocks.1.attention.qkv_proj.weight", "blocks.1.mlp.gate_up_proj.weight"})
    EXPECT_TRUE(packed.values.contains(name)) << name;
  EXPECT_EQ(packed.linears.size(), 2u * 4 + 1);
}

TEST_P(LanguageModelTest, ATiedHeadHasNoWeightOfItsOwn) {
  ModelConfig config = small_config();
  config.tie_embeddings = true;
  LanguageModel model(backend, config, 1);
  const Collect found = collect(model);
  EXPECT_FALSE(found.values.contains("lm_head.weight"));
  EXPECT_TRUE(found.linears.contains("lm_head"));
}

TEST_P(LanguageModelTest, TheGateBiasStartsAtItsConfiguredValueAndOthersAtZero) {
  for (const bool packed : {true, false}) {
    for (const bool qkv_bias : {true, false}) {
      ModelConfig config = small_config();
      config.packed_qkv = packed;
      config.qkv_bias = qkv_bias;
      config.gate = GateKind::headwise;
      config.gate_bias = true;
      config.gate_bias_init = 1.5f;
      LanguageModel model(backend, config, 1);
      const Collect found = collect(model);
      std::vector<float> bias =
          found.values.at(std::string("blocks.0.attention.") + (packed ? "qkv_proj" : "gate_proj") + ".bias");
      const std::vector<float> gate(bias.end() - config.heads, bias.end());
      EXPECT_EQ(gate, std::vector<float>(config.heads, 1.5f));
      bias.resize(bias.size() - config.heads);
      for (const float value : bias) EXPECT_EQ(value, 0.0f);
    }
  }
}

TEST_P(LanguageModelTest, InitialisationDependsOnTheSeedOnly) {
  LanguageModel a(backend, small_config(), 1), b(backend, small_config(), 1), c(backend, small_config(), 2);
  EXPECT_EQ(collect(a).values, collect(b).values);
  EXPECT_NE(collect(a).values, collect(c).values);
  const auto weight = collect(a).values.at("blocks.0.mlp.up_proj.weight");
  double squares = 0;
  for (const float w : weight) squares += static_cast<double>(w) * w;
  // 960 normals: the sample deviation is within 10% of 0.2 with overwhelming probability (4 standard errors).
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(weight.size())), 0.2, 0.02);
}

TEST_P(LanguageModelTest, NoTokenSeesALaterOneOrAnotherDocument) {
  LanguageModel model(backend, small_config(), 1);
  Context context(*backend, DType::f32);
  const std::int64_t vocab = model.config().vocab;
  std::vector<std::int32_t> tokens = random_tokens(12, vocab), first_key{0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5};
  const auto before = logits(model, context, token_batch(*backend, tokens, 1, 0, first_key));
  tokens[9] = (tokens[9] + 1) % static_cast<std::int32_t>(vocab);  // later than rows 5..8
  tokens[2] = (tokens[2] + 1) % static_cast<std::int32_t>(vocab);  // in the document before
  const auto after = logits(model, context, token_batch(*backend, tokens, 1, 0, first_key));
  const auto row = [&](const std::vector<float>& all, int r) {
    return std::vector<float>(all.begin() + r * vocab, all.begin() + (r + 1) * vocab);
  };
  for (const int r : {0, 1, 5, 6, 7, 8}) EXPECT_EQ(row(before, r), row(after, r)) << r;
  for (const int r : {2, 3, 4, 9, 10, 11}) EXPECT_NE(row(before, r), row(after, r)) << r;
}

TEST_P(LanguageModelTest, GeneratingWithACacheGivesTheLogitsOfTheWholeSequence) {
  for (const PositionKind position : {PositionKind::rope, PositionKind::learned}) {
    ModelConfig config = small_config();
    config.gate = GateKind::elementwise;
    config.position = position;
    LanguageModel model(backend, config, 1);
    Context context(*backend, DType::f32);
    const auto tokens = random_tokens(12, config.vocab);
    const auto whole = logits(model, context, token_batch(*backend, tokens, 1));

    KvCache cache = model.make_cache(12, DType::f32);
    std::vector<float> pieces;
    for (const auto& [begin, count] : {std::pair{0, 5}, {5, 1}, {6, 1}, {7, 5}}) {
      const std::vector<std::int32_t> piece(tokens.begin() + begin, tokens.begin() + begin + count);
      const auto part = extend(model, context, piece, {{&cache, count, count}});
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    ASSERT_EQ(pieces.size(), whole.size());
    // FP32; softmax blocks may be cut differently for other query counts: a few roundings of numbers of
    // size 1.
    for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(pieces[i], whole[i], 1e-4);
    EXPECT_THROW(extend(model, context, {1}, {{&cache, 1, 1}}), Error) << "beyond model.context";
  }
}

/// Products compute each row alone on these backends, so the other sequences leave no trace; `cuda` chooses its kernels by
/// the number of rows.
TEST_P(LanguageModelTest, ASequencesLogitsDoNotDependOnTheBatch) {
  if (backend->name() != "cpu" && backend->name() != "reference") GTEST_SKIP();
  ModelConfig config = small_config();
  config.gate = GateKind::elementwise;
  for (const bool fp8 : {false, true}) {
    LanguageModel model(backend, config, 1);
    Context context(*backend);
    const Autocast scope(context, fp8);
    const auto a = random_tokens(11, config.vocab, 1), b = random_tokens(7, config.vocab, 2);
    const auto piece = [](const std::vector<std::int32_t>& tokens, int begin, int count) {
      return std::vector<std::int32_t>(tokens.begin() + begin, tokens.begin() + begin + count);
    };
    const auto joined = [](std::vector<std::int32_t> first, const std::vector<std::int32_t>& second) {
      first.insert(first.end(), second.begin(), second.end());
      return first;
    };
    const DType dtype = context.high_precision();
    KvCache alone = model.make_cache(12, dtype), with_a = model.make_cache(12, dtype),
            with_b = model.make_cache(9, dtype);
    std::vector<float> expected = extend(model, context, piece(a, 0, 5), {{&alone, 5, 1}});
    for (const auto& [begin, count] : {std::pair{5, 1}, {6, 4}, {10, 1}}) {
      const auto more = extend(model, context, piece(a, begin, count), {{&alone, count, 1}});
      expected.insert(expected.end(), more.begin(), more.end());
    }
    const auto row = [&](const std::vector<float>& logits, int index) {
      return std::vector<float>(logits.begin() + index * config.vocab,
                                logits.begin() + (index + 1) * config.vocab);
    };
    std::vector<float> found = extend(model, context, piece(a, 0, 5), {{&with_a, 5, 1}});
    const auto add = [&](const std::vector<float>& values) {
      found.insert(found.end(), values.begin(), values.end());
    };
    add(row(
        extend(model, context, joined(piece(b, 0, 4), piece(a, 5, 1)), {{&with_b, 4, 2}, {&with_a, 1, 1}}),
        2));
    add(row(
        extend(model, context, joined(piece(a, 6, 4), piece(b, 4, 1)), {{&with_a, 4, 1}, {&with_b, 1, 0}}),
        0));
    with_b.length = 0;  // that sequence leaves; another takes its cache
    add(row(
        extend(model, context, joined(piece(b, 1, 6), piece(a, 10, 1)), {{&with_b, 6, 6}, {&with_a, 1, 1}}),
        6));
    EXPECT_EQ(found, expected) << (fp8 ? "FP8" : "BF16");
  }
}

TEST_P(LanguageModelTest, SlowEveryLinearRunsItsThreeGemmsInFp8) {
  for (const bool packed : {true, false}) {
    ModelConfig config = small_config();
    config.packed_qkv = config.packed_gate_up = packed;
    config.gate = GateKind::elementwise;
    config.qkv_bias = config.gate_bias = config.out_bias = config.mlp_bias = config.head_bias = true;
    LanguageModel model(backend, config, 1);
    Context context(*backend);
    for (int step = 0; step < 2; ++step) {
      LanguageModel::Saved saved;
      const std::int64_t rows = 24;
      const Tensor losses = backend->allocate(DType::f32, {rows});
      Output dlogits;
      {
        const Autocast scope(context, true);
        const Tensor y =
            model.forward(context, token_batch(*backend, random_tokens(rows, config.vocab), 2), &saved);
        dlogits = model.make_logits_gradient(context, saved);
        backend->cross_entropy(y, upload(*backend, random_tokens(rows, config.vocab, 1), {rows}), 1.0f / 24,
                               losses, dlogits);
      }
      const BackwardPass pass(context);
      model.backward(context, saved, dlogits);
    }
    const Collect found = collect(model);
    EXPECT_EQ(found.gradients.size(), found.values.size()) << "every parameter has a gradient";
    for (const auto& [name, linear] : found.linears) {
      for (const GemmRecord& gemm : linear->fp8().gemms) {
        EXPECT_EQ(gemm.fp8_runs, 2) << name;
        EXPECT_EQ(gemm.other_runs, 0) << name;
      }
      const float grad_amax = download(*backend, linear->fp8().grad_output->amax_history).back();
      EXPECT_GT(grad_amax, 0) << name;
    }
    for (const auto& [name, gradient] : found.gradients) {
      for (const float g : gradient) ASSERT_TRUE(std::isfinite(g)) << name;
    }
  }
}

TEST_P(LanguageModelTest, TheHeadCanBeKeptOutOfFp8) {
  LanguageModel model(backend, small_config(), 1);
  collect(model).linears.at("lm_head")->set_policy({{{false, ""}, {false, ""}, {false, ""}}});
  Context context(*backend);
  {
    const Autocast scope(context, true);
    logits(model, context, token_batch(*backend, random_tokens(12, 33), 1));
  }
  const Collect found = collect(model);
  EXPECT_EQ(found.linears.at("lm_head")->fp8().gemms[0].a, DType::bf16);
  EXPECT_EQ(found.linears.at("blocks.0.mlp.up_proj")->fp8().gemms[0].a, DType::e4m3);
}

TEST_P(LanguageModelTest, AnImpossibleConfigIsRefused) {
  ModelConfig config = small_config();
  config.kv_heads = 3;
  EXPECT_THROW(LanguageModel(backend, config, 1), Error);
}

INSTANTIATE_TEST_SUITE_P(Backends, LanguageModelTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
