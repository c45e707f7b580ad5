#include "quaver/model_config.h"

#include <gtest/gtest.h>

#include <limits>

#include "support/errors.h"

namespace quaver {
namespace {

std::string refusal(const ModelConfig& config) {
  return error_message(ErrorKind::usage, [&] { validate(config); });
}

TEST(ValidateModel, AcceptsTheDefaults) {
  EXPECT_NO_THROW(validate(ModelConfig{}));
}

TEST(ValidateModel, NamesTheSizeThatIsNotPositive) {
  const std::pair<const char*, std::int64_t ModelConfig::*> sizes[] = {
      {"width", &ModelConfig::width},       {"layers", &ModelConfig::layers},
      {"heads", &ModelConfig::heads},       {"kv_heads", &ModelConfig::kv_heads},
      {"head_dim", &ModelConfig::head_dim}, {"ffn_width", &ModelConfig::ffn_width},
      {"vocab", &ModelConfig::vocab},       {"context", &ModelConfig::context}};
  for (const auto& [name, member] : sizes) {
    for (const std::int64_t value :
         {std::int64_t{0}, std::int64_t{-3}, std::numeric_limits<std::int64_t>::max()}) {
      ModelConfig config;
      config.*member = value;
      const std::string message = refusal(config);
      EXPECT_TRUE(message.starts_with(std::string("model.") + name + ": expected an integer in [1, "))
          << message;
      EXPECT_TRUE(message.ends_with(", found " + std::to_string(value))) << message;
    }
  }
}

TEST(ValidateModel, KeyValueHeadsDivideHeads) {
  ModelConfig config;
  config.heads = 6, config.kv_heads = 4;
  EXPECT_EQ(refusal(config), "model.kv_heads: expected a divisor of model.heads = 6, found 4");
  config.kv_heads = 6;
  EXPECT_NO_THROW(validate(config));
}

TEST(ValidateModel, RotaryPositionsTurnPairs) {
  ModelConfig config;
  config.head_dim = 7;
  EXPECT_TRUE(refusal(config).starts_with("model.head_dim: expected an even number"));
  config.position = PositionKind::learned;
  EXPECT_NO_THROW(validate(config));
}

TEST(ValidateModel, TheRotatedShareIsAnEvenNumberOfFeatures) {
  ModelConfig config;
  config.head_dim = 12;
  for (const float fraction : {0.0f, -0.5f, 1.5f, 0.25f, 0.3f, std::numeric_limits<float>::quiet_NaN()}) {
    config.rope_fraction = fraction;
    EXPECT_TRUE(refusal(config).starts_with("model.rope_fraction: ")) << fraction;
  }
  config.rope_fraction = 0.5f;
  EXPECT_NO_THROW(validate(config));
}

TEST(ValidateModel, NumbersAreFiniteAndPositive) {
  const std::pair<const char*, float ModelConfig::*> numbers[] = {
      {"norm_epsilon", &ModelConfig::norm_epsilon},
      {"init_std", &ModelConfig::init_std},
      {"rope_theta", &ModelConfig::rope_theta}};
  for (const auto& [name, member] : numbers) {
    for (const float value :
         {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      ModelConfig config;
      config.*member = value;
      EXPECT_TRUE(refusal(config).starts_with(std::string("model.") + name + ": ")) << value;
    }
  }
  ModelConfig config;
  config.gate_bias_init = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(refusal(config).starts_with("model.gate_bias_init: "));
}

ModelConfig small_config() {
  ModelConfig config;
  config.width = 8, config.layers = 3, config.heads = 4, config.kv_heads = 2, config.head_dim = 6;
  config.ffn_width = 10, config.vocab = 11, config.context = 5;
  config.gate = GateKind::none;
  return config;
}

TEST(ParameterCount, CountsByHand) {
  // Attention 8*24 + 2*(8*12) + 24*8 = 576, feed-forward 3*80 = 240, norms 16; embedding 88; final norm 8.
  EXPECT_EQ(parameter_count(small_config()), 3 * (576 + 240 + 16) + 88 + 8);
}

TEST(ParameterCount, EveryChoiceAddsItsPart) {
  const std::int64_t base = parameter_count(small_config());
  const auto added = [&](auto change) {
    ModelConfig config = small_config();
    change(config);
    return parameter_count(config) - base;
  };
  EXPECT_EQ(added([](auto& c) { c.gate = GateKind::elementwise; }), 3 * 8 * 24);
  EXPECT_EQ(added([](auto& c) { c.gate = GateKind::headwise; }), 3 * 8 * 4);
  EXPECT_EQ(added([](auto& c) { c.gate = GateKind::headwise, c.gate_bias = true; }), 3 * (8 * 4 + 4));
  EXPECT_EQ(added([](auto& c) { c.gate_bias = true; }), 0);
  EXPECT_EQ(added([](auto& c) { c.packed_qkv = false; }), 0);
  EXPECT_EQ(added([](auto& c) { c.packed_gate_up = true; }), 0);
  EXPECT_EQ(added([](auto& c) { c.qkv_bias = true; }), 3 * 48);
  EXPECT_EQ(added([](auto& c) { c.out_bias = true; }), 3 * 8);
  EXPECT_EQ(added([](auto& c) { c.mlp_bias = true; }), 3 * 28);
  EXPECT_EQ(added([](auto& c) { c.head_bias = true; }), 11);
  EXPECT_EQ(added([](auto& c) { c.tie_embeddings = false; }), 88);
  EXPECT_EQ(added([](auto& c) { c.norm = NormKind::layer; }), 7 * 8);
  EXPECT_EQ(added([](auto& c) { c.qk_norm = QkNorm::pre_rope; }), 3 * 12);
  EXPECT_EQ(added([](auto& c) { c.position = PositionKind::learned; }), 40);
  EXPECT_EQ(added([](auto& c) { c.mlp = Activation::gelu; }), -3 * 80);
  EXPECT_EQ(added([](auto& c) { c.mlp = Activation::gelu, c.packed_gate_up = true; }), -3 * 80);
}

}  // namespace
}  // namespace quaver
