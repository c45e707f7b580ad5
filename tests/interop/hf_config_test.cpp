#include "interop/hf_config.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "support/errors.h"

namespace quaver {
namespace {

using nlohmann::json;

/// A model with a stock home: gated, QK-norm before the rotary embedding.
ModelConfig gated() {
  ModelConfig config;
  config.qk_norm = QkNorm::pre_rope;
  return config;
}

json config_json(const ModelConfig& config) {
  return json::parse(to_hf_config(config, DType::f32, 256));
}

TEST(HfConfigTest, EveryCombinationOfGateAndQkNormHasItsArchitectureOrAReason) {
  ModelConfig config = gated();
  EXPECT_EQ(stock_architecture(config), HfArchitecture::qwen3_5);
  config.gate = GateKind::headwise;
  EXPECT_EQ(stock_architecture(config), HfArchitecture::qwen3_5);
  config.gate = GateKind::none;
  EXPECT_EQ(stock_architecture(config), HfArchitecture::qwen3);
  config.qk_norm = QkNorm::none;
  EXPECT_EQ(stock_architecture(config), HfArchitecture::llama);
  // Of an ungated model the gate's other settings do not matter.
  config.gate_activation = GateActivation::silu;
  config.gate_bias = true;
  EXPECT_EQ(stock_architecture(config), HfArchitecture::llama);
  EXPECT_FALSE(has_attention_bias(config));
}

TEST(HfConfigTest, RefusalsNameTheKey) {
  const auto refusal = [](const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = gated();
    change(config);
    return error_message(ErrorKind::usage, [&] { stock_architecture(config); });
  };
  using Config = ModelConfig;
  EXPECT_TRUE(contains(refusal([](Config& c) { c.norm = NormKind::layer; }), "model.norm = \"layer\""));
  EXPECT_TRUE(contains(refusal([](Config& c) { c.position = PositionKind::learned; }), "model.position"));
  EXPECT_TRUE(contains(refusal([](Config& c) { c.mlp = Activation::gelu; }), "model.mlp = \"gelu\""));
  EXPECT_TRUE(contains(refusal([](Config& c) { c.head_bias = true; }), "model.head_bias"));
  EXPECT_TRUE(
      contains(refusal([](Config& c) { c.qk_norm = QkNorm::post_rope; }), "model.qk_norm = \"post_rope\""));
  EXPECT_TRUE(
      contains(refusal([](Config& c) { c.qk_norm = QkNorm::none; }), "model.qk_norm = \"none\" with"));
  EXPECT_TRUE(contains(refusal([](Config& c) { c.gate_activation = GateActivation::silu; }),
                       "model.gate_activation = \"silu\""));
  EXPECT_TRUE(contains(refusal([](Config& c) { c.mlp_bias = true; }), "model.mlp_bias"));
  const auto ungated = [](Config& c) { c.gate = GateKind::none; };
  EXPECT_TRUE(
      contains(refusal([&](Config& c) { ungated(c), c.rope_fraction = 0.5f; }), "model.rope_fraction"));
  const auto llama = [&](Config& c) { ungated(c), c.qk_norm = QkNorm::none; };
  EXPECT_TRUE(contains(refusal([&](Config& c) { llama(c), c.rope_fraction = 0.5f; }), "model.rope_fraction"));
  EXPECT_TRUE(contains(refusal([&](Config& c) { llama(c), c.heads = 10; }), "model.heads"));
}

TEST(HfConfigTest, ReadsWhatItWrites) {
  ModelConfig config = gated();
  config.gate = GateKind::elementwise;
  config.rope_fraction = 0.5f;
  config.rope_theta = 500000;
  config.norm_epsilon = 1e-5f;
  config.mlp = Activation::geglu;
  config.tie_embeddings = false;
  config.qkv_bias = config.out_bias = config.gate_bias = true;
  const std::string text = to_hf_config(config, DType::f32, 256);
  EXPECT_TRUE(contains(text, "\"rms_norm_eps\": 1e-05")) << text;
  const HfModel model = parse_hf_config(text, "config.json", GateLayout::per_head);
  EXPECT_EQ(model.architecture, HfArchitecture::qwen3_5);
  EXPECT_EQ(model.config, config);
}

TEST(HfConfigTest, ReadsTheOlderRotaryKeys) {
  ModelConfig config = gated();
  config.gate = GateKind::none;
  json object = config_json(config);
  object.erase("rope_parameters");
  object["rope_theta"] = 5000;
  object["rope_scaling"] = nullptr;
  EXPECT_EQ(parse_hf_config(object.dump(), "c", GateLayout::per_head).config.rope_theta, 5000);
  object.erase("rope_theta");
  EXPECT_EQ(parse_hf_config(object.dump(), "c", GateLayout::per_head).config.rope_theta, 10000);
  object["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  EXPECT_TRUE(contains(
      error_message(ErrorKind::data, [&] { parse_hf_config(object.dump(), "c", GateLayout::per_head); }),
      "c: type = \"linear\" is not supported"));
}

TEST(HfConfigTest, RefusesWhatQuaverHasNot) {
  const auto refusal = [](const char* key, const json& value) {
    json object = config_json(gated());
    object[key] = value;
    return error_message(ErrorKind::data,
                         [&] { parse_hf_config(object.dump(), "F/config.json", GateLayout::per_head); });
  };
  EXPECT_TRUE(
      contains(refusal("model_type", "gpt2"), "F/config.json: model_type = \"gpt2\" is not supported"));
  EXPECT_TRUE(contains(refusal("model_type", nullptr), "model_type = null"));
  EXPECT_TRUE(contains(refusal("architectures", {"Qwen3_5ForConditionalGeneration"}), "architectures"));
  EXPECT_TRUE(contains(refusal("hidden_act", "relu"), "hidden_act = \"relu\""));
  EXPECT_TRUE(contains(refusal("hidden_size", -1), "hidden_size: expected an integer"));
  EXPECT_TRUE(contains(refusal("hidden_size", 32.0), "hidden_size: expected an integer"));
  EXPECT_TRUE(contains(refusal("hidden_size", nullptr), "hidden_size: expected an integer"));
  EXPECT_TRUE(contains(refusal("num_hidden_layers", 1LL << 39), "model.layers"));
  EXPECT_TRUE(contains(refusal("num_attention_heads", 0), "num_attention_heads"));
  EXPECT_TRUE(contains(refusal("num_key_value_heads", 4), "model.kv_heads: expected a divisor"));
  EXPECT_TRUE(contains(refusal("layer_types", nullptr), "layer_types"));
  EXPECT_TRUE(contains(refusal("layer_types", {"full_attention", "linear_attention"}), "layer_types"));
  EXPECT_TRUE(contains(refusal("attention_dropout", 0.1), "attention_dropout = 0.1 is not supported"));
  EXPECT_TRUE(contains(refusal("attn_output_gate", false), "attn_output_gate"));
  EXPECT_TRUE(contains(refusal("tie_word_embeddings", "yes"), "tie_word_embeddings: expected true or false"));
  EXPECT_TRUE(contains(refusal("rope_parameters", {{"rope_type", "yarn"}}), "rope_type = \"yarn\""));
  EXPECT_TRUE(contains(refusal("rope_parameters", "none"), "rope_parameters: expected an object"));
  EXPECT_TRUE(contains(refusal("logit_scale", 2), "the key logit_scale = 2 is unknown"));
  EXPECT_TRUE(contains(refusal("quantization_config", json::object()), "quantization_config"));
}

TEST(HfConfigTest, AnUnknownKeyCanBeIgnoredAndBrokenJsonCannot) {
  json object = config_json(gated());
  object["note"] = "made by hand";
  const std::vector<std::string> ignored = {"note"};
  EXPECT_NO_THROW(parse_hf_config(object.dump(), "c", GateLayout::per_head, ignored));
  for (const char* text : {"", "[]", "{", "null"}) {
    EXPECT_TRUE(
        contains(error_message(ErrorKind::data, [&] { parse_hf_config(text, "c", GateLayout::per_head); }),
                 "c: expected a JSON object"))
        << text;
  }
}

TEST(HfConfigTest, TheGatePapersLayoutIsAskedFor) {
  ModelConfig config = gated();
  config.gate = GateKind::none;
  json object = config_json(config);
  const auto parse = [&](GateLayout layout) { return parse_hf_config(object.dump(), "c", layout); };
  const auto refusal = [&](GateLayout layout) {
    return error_message(ErrorKind::data, [&] { parse(layout); });
  };
  EXPECT_TRUE(contains(refusal(GateLayout::per_kv_group), "expected one of headwise_attn_output_gate"));
  object["headwise_attn_output_gate"] = true;
  EXPECT_TRUE(contains(refusal(GateLayout::per_head), "--gate-layout per-kv-group"));
  EXPECT_EQ(parse(GateLayout::per_kv_group).config.gate, GateKind::headwise);
  object["elementwise_attn_output_gate"] = true;
  EXPECT_TRUE(contains(refusal(GateLayout::per_kv_group), "expected one of"));
  object = config_json(gated());
  EXPECT_TRUE(contains(refusal(GateLayout::per_kv_group), "expected model_type qwen3"));
}

}  // namespace
}  // namespace quaver
