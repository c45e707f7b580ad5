#include "quaver/model_config.h"

#include <cmath>

#include "base/check.h"

namespace quaver {
namespace {

void check_size(const char* field, std::int64_t value, std::int64_t largest) {
  require(value >= 1 && value <= largest, "model.{}: expected an integer in [1, {}], found {}", field,
          largest, value);
}

void check_positive(const char* field, float value) {
  require(std::isfinite(value) && value > 0, "model.{}: expected a finite number > 0, found {}", field,
          value);
}

void check_rotary(const ModelConfig& config) {
  require(config.head_dim % 2 == 0,
          "model.head_dim: expected an even number, as position = \"rope\" turns pairs, found {}",
          config.head_dim);
  check_positive("rope_theta", config.rope_theta);
  const double rotated = static_cast<double>(config.rope_fraction) * static_cast<double>(config.head_dim);
  require(config.rope_fraction > 0 && config.rope_fraction <= 1 && std::fmod(rotated, 2.0) == 0,
          "model.rope_fraction: expected a number in (0, 1] whose product with model.head_dim = {} is even, "
          "found {} (product {})",
          config.head_dim, config.rope_fraction, rotated);
}

std::int64_t linear(std::int64_t in, std::int64_t out, bool bias) {
  return in * out + (bias ? out : 0);
}

std::int64_t attention_parameters(const ModelConfig& config) {
  const std::int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  return linear(config.width, q + 2 * kv, config.qkv_bias) +
         linear(config.width, gate_features(config), config.gate_bias) +
         (config.qk_norm == QkNorm::none ? 0 : 2 * config.head_dim) +
         linear(q, config.width, config.out_bias);
}

std::int64_t mlp_parameters(const ModelConfig& config) {
  return feed_forward_inputs(config) * linear(config.width, config.ffn_width, config.mlp_bias) +
         linear(config.ffn_width, config.width, config.mlp_bias);
}

}  // namespace

void validate(const ModelConfig& config) {
  check_size("width", config.width, kMaxFeatures);
  check_size("layers", config.layers, kMaxLayers);
  check_size("heads", config.heads, kMaxHeads);
  check_size("kv_heads", config.kv_heads, kMaxHeads);
  check_size("head_dim", config.head_dim, kMaxHeadDim);
  check_size("ffn_width", config.ffn_width, kMaxFeatures);
  check_size("vocab", config.vocab, kMaxFeatures);
  check_size("context", config.context, kMaxFeatures);
  require(config.heads % config.kv_heads == 0,
          "model.kv_heads: expected a divisor of model.heads = {}, found {}", config.heads, config.kv_heads);
  check_positive("norm_epsilon", config.norm_epsilon);
  check_positive("init_std", config.init_std);
  require(std::isfinite(config.gate_bias_init), "model.gate_bias_init: expected a finite number, found {}",
          config.gate_bias_init);
  if (config.position == PositionKind::rope) check_rotary(config);
}

std::int64_t gate_features(const ModelConfig& config) {
  switch (config.gate) {
    case GateKind::none:
      return 0;
    case GateKind::headwise:
      return config.heads;
    case GateKind::elementwise:
      return config.heads * config.head_dim;
  }
  return 0;
}

std::int64_t feed_forward_inputs(const ModelConfig& config) {
  return config.mlp == Activation::gelu ? 1 : 2;
}

bool packs_gate_up(const ModelConfig& config) {
  return config.packed_gate_up && feed_forward_inputs(config) == 2;
}

std::int64_t parameter_count(const ModelConfig& config) {
  const std::int64_t norm = (config.norm == NormKind::layer ? 2 : 1) * config.width;
  const std::int64_t positions = config.position == PositionKind::learned ? config.context * config.width : 0;
  const std::int64_t head =
      (config.tie_embeddings ? 0 : config.vocab * config.width) + (config.head_bias ? config.vocab : 0);
  const std::int64_t block = attention_parameters(config) + mlp_parameters(config) + 2 * norm;
  return config.vocab * config.width + positions + config.layers * block + norm + head;
}

}  // namespace quaver
