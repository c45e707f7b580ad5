#include "interop/hf_weights.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

struct Names {
  std::string quaver, hf;
};

struct Layer {
  std::string quaver, hf;  // both end in a dot
};

std::vector<Layer> layers_of(const ModelConfig& config) {
  std::vector<Layer> layers;
  for (std::int64_t i = 0; i < config.layers; ++i) {
    layers.push_back({fmt::format("blocks.{}.", i), fmt::format("model.layers.{}.", i)});
  }
  return layers;
}

/// The gains of all norms.
std::vector<Names> gains_of(const ModelConfig& config) {
  std::vector<Names> names{{"final_norm.gain", "model.norm.weight"}};
  for (const Layer& layer : layers_of(config)) {
    names.push_back({layer.quaver + "attention_norm.gain", layer.hf + "input_layernorm.weight"});
    names.push_back({layer.quaver + "mlp_norm.gain", layer.hf + "post_attention_layernorm.weight"});
    if (config.qk_norm == QkNorm::none) continue;
    names.push_back({layer.quaver + "attention.q_norm.gain", layer.hf + "self_attn.q_norm.weight"});
    names.push_back({layer.quaver + "attention.k_norm.gain", layer.hf + "self_attn.k_norm.weight"});
  }
  return names;
}

/// Weights that only change their names.
std::vector<Names> plain_of(const ModelConfig& config) {
  std::vector<Names> names{{"embedding.weight", "model.embed_tokens.weight"}};
  if (!config.tie_embeddings) names.push_back({"lm_head.weight", "lm_head.weight"});
  const auto add = [&](const std::string& quaver, const std::string& hf, bool bias) {
    names.push_back({quaver + ".weight", hf + ".weight"});
    if (bias) names.push_back({quaver + ".bias", hf + ".bias"});
  };
  for (const Layer& layer : layers_of(config)) {
    for (const char* mlp : {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      add(layer.quaver + mlp, layer.hf + mlp, config.mlp_bias);
    add(layer.quaver + "attention.k_proj", layer.hf + "self_attn.k_proj", config.qkv_bias);
    add(layer.quaver + "attention.v_proj", layer.hf + "self_attn.v_proj", config.qkv_bias);
    add(layer.quaver + "attention.out_proj", layer.hf + "self_attn.o_proj", config.out_bias);
  }
  return names;
}

std::int64_t columns_of(const FloatArray& array) {
  return array.shape.size() > 1 ? array.shape[1] : 1;
}

/// Rows of q_proj and of the gate, group by group: `q_rows` of the one, then `gate_rows` of the other.
FloatArray interleave(const FloatArray& q, const FloatArray& gate, std::int64_t groups) {
  FloatArray out{q.shape, {}};
  out.shape.front() += gate.shape.front();
  out.values.reserve(q.values.size() + gate.values.size());
  for (std::int64_t group = 0; group < groups; ++group) {
    for (const FloatArray* part : {&q, &gate}) {
      const auto count = static_cast<std::ptrdiff_t>(part->values.size()) / groups;
      const auto begin = part->values.begin() + group * count;
      out.values.insert(out.values.end(), begin, begin + count);
    }
  }
  return out;
}

/// The opposite: {q, gate}.
std::pair<FloatArray, FloatArray> separate(const FloatArray& both, std::int64_t q_rows,
                                           std::int64_t gate_rows, std::int64_t groups) {
  FloatArray q{both.shape, {}}, gate{both.shape, {}};
  q.shape.front() = q_rows, gate.shape.front() = gate_rows;
  auto at = both.values.begin();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (FloatArray* part : {&q, &gate}) {
      const auto count = static_cast<std::ptrdiff_t>(element_count(part->shape) / groups);
      part->values.insert(part->values.end(), at, at + count);
      at += count;
    }
  }
  return {std::move(q), std::move(gate)};
}

/// Every row `times` times.
FloatArray repeat_rows(const FloatArray& array, std::int64_t times) {
  FloatArray out{array.shape, {}};
  out.shape.front() *= times;
  const std::ptrdiff_t columns = columns_of(array);
  for (auto row = array.values.begin(); row != array.values.end(); row += columns) {
    for (std::int64_t i = 0; i < times; ++i) out.values.insert(out.values.end(), row, row + columns);
  }
  return out;
}

FloatArray take(FloatArrays& arrays, const std::string& name) {
  auto found = arrays.extract(name);
  if (!found) fail(ErrorKind::data, "the weight {} is missing", name);
  return std::move(found.mapped());
}

void expect_shape(const FloatArray& array, const std::string& name, const Shape& shape) {
  if (array.shape != shape) {
    fail(ErrorKind::data, "the weight {}: config.json asks for the shape {}, found {}", name,
         to_string(shape), to_string(array.shape));
  }
}

/// A bias that may be absent on Quaver's side.
FloatArray bias_or_zero(FloatArrays& arrays, const std::string& name, std::int64_t count) {
  if (arrays.contains(name)) return take(arrays, name);
  return {{count}, std::vector<float>(static_cast<std::size_t>(count))};
}

FloatArray gate_rows(const ModelConfig& config, const FloatArray& gate) {
  return config.gate == GateKind::headwise ? repeat_rows(gate, config.head_dim) : gate;
}

void export_q(const ModelConfig& config, const Layer& layer, FloatArrays& arrays, FloatArrays& out) {
  const std::string q_name = layer.quaver + "attention.q_proj", hf = layer.hf + "self_attn.q_proj";
  const std::string gate_name = layer.quaver + "attention.gate_proj";
  const bool gated = config.gate != GateKind::none, bias = has_attention_bias(config);
  FloatArray q = take(arrays, q_name + ".weight");
  FloatArray q_bias = bias_or_zero(arrays, q_name + ".bias", config.heads * config.head_dim);
  if (gated) {
    q = interleave(q, gate_rows(config, take(arrays, gate_name + ".weight")), config.heads);
    const FloatArray gate_bias = bias_or_zero(arrays, gate_name + ".bias", gate_features(config));
    q_bias = interleave(q_bias, gate_rows(config, gate_bias), config.heads);
  }
  out[hf + ".weight"] = std::move(q);
  if (bias) out[hf + ".bias"] = std::move(q_bias);
}

/// Zero biases where the architecture has all of them and Quaver's model only some.
void fill_biases(const ModelConfig& config, const Layer& layer, FloatArrays& out) {
  if (!has_attention_bias(config)) return;
  for (const char* name : {"k_proj", "v_proj", "o_proj"}) {
    const std::string base = layer.hf + "self_attn." + name;
    const std::int64_t rows = out.at(base + ".weight").shape.front();
    out.try_emplace(base + ".bias", FloatArray{{rows}, std::vector<float>(static_cast<std::size_t>(rows))});
  }
}

void import_q(const HfModel& model, const Layer& layer, FloatArrays& arrays, FloatArrays& out) {
  const ModelConfig& config = model.config;
  const std::string q_name = layer.quaver + "attention.q_proj", hf = layer.hf + "self_attn.q_proj";
  const std::string gate_name = layer.quaver + "attention.gate_proj";
  const std::int64_t q_rows = config.heads * config.head_dim, gate_rows = gate_features(config);
  const std::int64_t groups = model.gate_layout == GateLayout::per_head ? config.heads : config.kv_heads;
  for (const char* kind : {".weight", ".bias"}) {
    const bool is_bias = std::strcmp(kind, ".bias") == 0;
    if (is_bias && !config.qkv_bias) continue;
    FloatArray both = take(arrays, hf + kind);
    const std::int64_t rows = q_rows + gate_rows;
    expect_shape(both, hf + kind, is_bias ? Shape{rows} : Shape{rows, config.width});
    if (gate_rows == 0) {
      out[q_name + kind] = std::move(both);
    } else {
      auto [q, gate] = separate(both, q_rows, gate_rows, groups);
      out[q_name + kind] = std::move(q);
      out[gate_name + kind] = std::move(gate);
    }
  }
}

void take_tied_head(const ModelConfig& config, FloatArrays& arrays) {
  if (!config.tie_embeddings) return;
  const auto head = arrays.extract("lm_head.weight");
  const auto embedding = arrays.find("model.embed_tokens.weight");
  if (head && embedding != arrays.end() && head.mapped().values != embedding->second.values)
    fail(ErrorKind::data,
         "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight");
}

}  // namespace

FloatArrays to_hf_weights(const ModelConfig& config, FloatArrays arrays) {
  const HfArchitecture architecture = stock_architecture(config);
  FloatArrays out;
  for (const Names& names : gains_of(config)) {
    FloatArray gain = take(arrays, names.quaver);
    if (architecture == HfArchitecture::qwen3_5) {
      for (float& value : gain.values) value -= 1;
    }
    out[names.hf] = std::move(gain);
  }
  for (const Names& names : plain_of(config)) out[names.hf] = take(arrays, names.quaver);
  for (const Layer& layer : layers_of(config)) {
    export_q(config, layer, arrays, out);
    fill_biases(config, layer, out);
    if (config.gate != GateKind::none && config.gate_activation == GateActivation::sigmoid2) {
      for (float& value : out.at(layer.hf + "self_attn.o_proj.weight").values) value *= 2;
    }
  }
  if (!arrays.empty()) fail(ErrorKind::data, "export: {} has no place", arrays.begin()->first);
  return out;
}

FloatArrays from_hf_weights(const HfModel& model, FloatArrays arrays) {
  take_tied_head(model.config, arrays);
  FloatArrays out;
  for (const Names& names : gains_of(model.config)) {
    FloatArray gain = take(arrays, names.hf);
    if (model.architecture == HfArchitecture::qwen3_5) {
      for (float& value : gain.values) value += 1;
    }
    out[names.quaver] = std::move(gain);
  }
  for (const Names& names : plain_of(model.config)) out[names.quaver] = take(arrays, names.hf);
  for (const Layer& layer : layers_of(model.config)) import_q(model, layer, arrays, out);
  if (!arrays.empty()) {
    fail(ErrorKind::data, "the weight {} is unknown: config.json describes no such part",
         arrays.begin()->first);
  }
  return out;
}

void make_gates_headwise(const ModelConfig& config, FloatArrays& arrays) {
  for (const Layer& layer : layers_of(config)) {
    for (const char* kind : {".weight", ".bias"}) {
      const std::string name = layer.quaver + "attention.gate_proj" + kind;
      const auto found = arrays.find(name);
      if (found == arrays.end()) continue;
      FloatArray& gate = found->second;
      FloatArray narrow{gate.shape, {}};
      narrow.shape.front() = config.heads;
      const std::ptrdiff_t columns = columns_of(gate), head = columns * config.head_dim;
      for (auto row = gate.values.begin(); row != gate.values.end(); row += head)
        narrow.values.insert(narrow.values.end(), row, row + columns);
      if (repeat_rows(narrow, config.head_dim).values != gate.values)
        fail(ErrorKind::data, "--gate headwise: the rows of {} differ within a head", name);
      gate = std::move(narrow);
    }
  }
}

}  // namespace quaver
