#include "interop/hf_config.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "base/check.h"

namespace quaver {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct ArchitectureName {
  HfArchitecture architecture;
  const char *class_name, *model_type;
  std::int64_t default_head_dim;  // 0: width / heads
};
constexpr ArchitectureName kArchitectures[] = {
    {HfArchitecture::llama, "LlamaForCausalLM", "llama", 0},
    {HfArchitecture::qwen3, "Qwen3ForCausalLM", "qwen3", 128},
    {HfArchitecture::qwen3_5, "Qwen3_5ForCausalLM", "qwen3_5_text", 256}};

const ArchitectureName& name_of(HfArchitecture architecture) {
  return kArchitectures[static_cast<std::size_t>(architecture)];
}

void need(bool condition, const char* key, const char* reason) {
  require(condition, "{}: no stock architecture of Hugging Face transformers computes this: {}", key, reason);
}

/// What every stock architecture asks for.
void check_common(const ModelConfig& config) {
  need(config.norm == NormKind::rms, "model.norm = \"layer\"", "all of them have RMSNorm");
  need(config.position == PositionKind::rope, "model.position = \"learned\"", "all of them are rotary");
  need(config.mlp != Activation::gelu, "model.mlp = \"gelu\"", "their feed-forward has a gate");
  need(!config.head_bias, "model.head_bias = true", "their lm_head has no bias");
  need(config.qk_norm != QkNorm::post_rope, "model.qk_norm = \"post_rope\"",
       "they normalise q and k before the rotary embedding");
}

void check_llama(const ModelConfig& config) {
  need(config.rope_fraction == 1, "model.rope_fraction < 1", "LlamaForCausalLM rotates whole heads");
  need(config.width % config.heads == 0, "model.heads",
       "LlamaForCausalLM asks for a divisor of model.width, also where head_dim is given");
}

void check_qwen(const ModelConfig& config, bool gated) {
  need(!config.mlp_bias, "model.mlp_bias = true", "only LlamaForCausalLM has such biases");
  need(gated || config.rope_fraction == 1, "model.rope_fraction < 1", "Qwen3ForCausalLM rotates whole heads");
}

/// The double that prints as the shortest decimal number of this float: 1e-06 rather than 9.99999997e-07.
double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

/// Reads the keys of one config.json; every key that is read counts as known.
class Reader {
 public:
  Reader(const json& object, const std::string& source) : object_(object), source_(source) {}

  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorKind::data, "{}: {}", source_, fmt::format(format, std::forward<Args>(args)...));
  }

  /// The value; null when the key is absent or null.
  const json& value(const std::string& key) {
    static const json null;
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? null : *found;
  }
  std::int64_t integer(const std::string& key, std::int64_t fallback = -1) {
    const json& found = value(key);
    if (found.is_null() && fallback >= 0) return fallback;
    const bool fits = found.is_number_unsigned() && found.get<std::uint64_t>() < (std::uint64_t{1} << 40);
    if (!fits) refuse("{}: expected an integer from 0 to 2^40, found {}", key, found.dump());
    return found.get<std::int64_t>();
  }
  float number(const std::string& key, float fallback) {
    const json& found = value(key);
    if (found.is_null()) return fallback;
    if (!found.is_number()) refuse("{}: expected a number, found {}", key, found.dump());
    return found.get<float>();
  }
  bool boolean(const std::string& key, bool fallback) {
    const json& found = value(key);
    if (found.is_null()) return fallback;
    if (!found.is_boolean()) refuse("{}: expected true or false, found {}", key, found.dump());
    return found.get<bool>();
  }
  /// The key may be absent or null; anything but `supported` is refused.
  void expect(const std::string& key, const json& supported, const char* reason) {
    const json& found = value(key);
    if (!found.is_null() && found != supported)
      refuse("{} = {} is not supported: {}", key, found.dump(), reason);
  }
  void ignore(std::initializer_list<const char*> keys) { known_.insert(keys.begin(), keys.end()); }
  void ignore(std::span<const std::string> keys) { known_.insert(keys.begin(), keys.end()); }
  void refuse_unknown_keys() const {
    for (const auto& [key, found] : object_.items()) {
      if (!known_.contains(key)) {
        refuse(
            "the key {} = {} is unknown to Quaver, and may change what the model computes. Hint: if it does "
            "not, --ignore-key {}",
            key, found.dump(), key);
      }
    }
  }

 private:
  const json& object_;
  const std::string& source_;
  std::set<std::string> known_;
};

HfArchitecture read_architecture(Reader& reader) {
  const json& type = reader.value("model_type");
  for (const ArchitectureName& name : kArchitectures) {
    if (type == name.model_type) {
      reader.expect("architectures", json::array({name.class_name}), "it does not belong to model_type");
      return name.architecture;
    }
  }
  reader.refuse("model_type = {} is not supported; supported: llama, qwen3, qwen3_5_text", type.dump());
}

void read_sizes(Reader& reader, const ArchitectureName& name, ModelConfig& config) {
  config.width = reader.integer("hidden_size");
  config.layers = reader.integer("num_hidden_layers");
  config.heads = reader.integer("num_attention_heads");
  config.kv_heads = reader.integer("num_key_value_heads", config.heads);
  if (config.heads == 0) reader.refuse("num_attention_heads: expected a number > 0");
  const std::int64_t usual = name.default_head_dim > 0 ? name.default_head_dim : config.width / config.heads;
  config.head_dim = reader.integer("head_dim", usual);
  config.ffn_width = reader.integer("intermediate_size");
  config.vocab = reader.integer("vocab_size");
  config.context = reader.integer("max_position_embeddings");
}

/// transformers 5 has rope_parameters; before, rope_theta and rope_scaling stood at the top.
void read_rotary(Reader& reader, const std::string& source, HfArchitecture architecture,
                 ModelConfig& config) {
  const json& newer = reader.value("rope_parameters");
  const json& older = reader.value("rope_scaling");
  if (!newer.is_null() && !newer.is_object()) reader.refuse("rope_parameters: expected an object");
  if (!older.is_null() && !older.is_object()) reader.refuse("rope_scaling: expected an object");
  const float usual_fraction = architecture == HfArchitecture::qwen3_5 ? 0.25f : 1.0f;
  config.rope_theta = reader.number("rope_theta", 10000);
  config.rope_fraction = reader.number("partial_rotary_factor", usual_fraction);
  for (const json* parameters : {&older, &newer}) {
    if (parameters->is_null()) continue;
    Reader rope(*parameters, source);
    for (const char* key : {"rope_type", "type"}) {
      rope.expect(key, "default", "Quaver's rotary frequencies are not scaled");
    }
    config.rope_theta = rope.number("rope_theta", config.rope_theta);
    config.rope_fraction = rope.number("partial_rotary_factor", config.rope_fraction);
    // Sections of image positions: of a text all three positions are equal, and the sections without effect.
    if (architecture == HfArchitecture::qwen3_5) rope.ignore({"mrope_section", "mrope_interleaved"});
    rope.refuse_unknown_keys();
  }
  if (architecture != HfArchitecture::qwen3_5 && config.rope_fraction != 1)
    reader.refuse("partial_rotary_factor = {}: this architecture rotates whole heads", config.rope_fraction);
}

/// Before anything is as large as these numbers say.
void check_sizes(const Reader& reader, const ModelConfig& config) try {
  validate(config);
} catch (const Error& error) {
  reader.refuse("{}", error.what());
}

void read_activation(Reader& reader, ModelConfig& config) {
  const json& act = reader.value("hidden_act");
  if (act.is_null() || act == "silu") {
    config.mlp = Activation::swiglu;
  } else if (act == "gelu_pytorch_tanh") {
    config.mlp = Activation::geglu;
  } else {
    reader.refuse("hidden_act = {} is not supported; supported: silu, gelu_pytorch_tanh", act.dump());
  }
}

void read_layer_types(Reader& reader, const ModelConfig& config, bool required) {
  const json& types = reader.value("layer_types");
  if (types.is_null() && required) {
    reader.refuse(
        "layer_types: expected \"full_attention\" for every layer; without the key most layers are of "
        "linear attention, which Quaver has not");
  }
  if (types.is_null()) return;
  const json full(static_cast<std::size_t>(config.layers), json("full_attention"));
  if (types != full)
    reader.refuse("layer_types: expected \"full_attention\" for each of {} layers, found {}", config.layers,
                  types.dump());
}

/// The keys of the code published with the gate paper, a changed Qwen3.
void read_paper_gate(Reader& reader, GateLayout layout, ModelConfig& config) {
  const bool headwise = reader.boolean("headwise_attn_output_gate", false);
  const bool elementwise = reader.boolean("elementwise_attn_output_gate", false);
  if (layout != GateLayout::per_kv_group) {
    if (headwise || elementwise)
      reader.refuse("a gate in the layout of the gate paper's code. Hint: --gate-layout per-kv-group");
    return;
  }
  if (headwise == elementwise)
    reader.refuse(
        "--gate-layout per-kv-group: expected one of headwise_attn_output_gate and "
        "elementwise_attn_output_gate to be true");
  config.gate = headwise ? GateKind::headwise : GateKind::elementwise;
  if (!reader.boolean("use_qk_norm", true)) config.qk_norm = QkNorm::none;
  config.qkv_bias = reader.boolean("qkv_bias", config.qkv_bias);
}

void ignore_harmless(Reader& reader) {
  reader.ignore({"torch_dtype", "dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id",
                 "pad_token_id", "pretraining_tp", "max_window_layers", "sliding_window",
                 "full_attention_interval", "linear_conv_kernel_dim", "linear_key_head_dim",
                 "linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim", "mamba_ssm_dtype",
                 "auto_map"});
}

}  // namespace

std::string class_name(HfArchitecture architecture) {
  return name_of(architecture).class_name;
}

HfArchitecture stock_architecture(const ModelConfig& config) {
  check_common(config);
  if (config.gate == GateKind::none) {
    const bool normed = config.qk_norm == QkNorm::pre_rope;
    normed ? check_qwen(config, false) : check_llama(config);
    return normed ? HfArchitecture::qwen3 : HfArchitecture::llama;
  }
  check_qwen(config, true);
  need(config.qk_norm == QkNorm::pre_rope, "model.qk_norm = \"none\" with model.gate",
       "Qwen3_5ForCausalLM, the gated one, normalises q and k. Hint: train with model.qk_norm=pre_rope");
  need(config.gate_activation != GateActivation::silu, "model.gate_activation = \"silu\"",
       "Qwen3_5ForCausalLM gates by a sigmoid");
  return HfArchitecture::qwen3_5;
}

bool has_attention_bias(const ModelConfig& config) {
  return config.qkv_bias || config.out_bias || (config.gate != GateKind::none && config.gate_bias);
}

std::string to_hf_config(const ModelConfig& config, DType dtype, std::int64_t document_token) {
  const HfArchitecture architecture = stock_architecture(config);
  const ArchitectureName& name = name_of(architecture);
  ordered_json out = {{"architectures", {name.class_name}},
                      {"model_type", name.model_type},
                      {"hidden_size", config.width},
                      {"num_hidden_layers", config.layers},
                      {"num_attention_heads", config.heads},
                      {"num_key_value_heads", config.kv_heads},
                      {"head_dim", config.head_dim},
                      {"intermediate_size", config.ffn_width},
                      {"vocab_size", config.vocab},
                      {"max_position_embeddings", config.context},
                      {"hidden_act", config.mlp == Activation::swiglu ? "silu" : "gelu_pytorch_tanh"},
                      {"rms_norm_eps", shortest(config.norm_epsilon)},
                      {"attention_bias", has_attention_bias(config)},
                      {"attention_dropout", 0.0},
                      {"tie_word_embeddings", config.tie_embeddings},
                      {"initializer_range", shortest(config.init_std)}};
  // transformers before 5 reads rope_theta and torch_dtype, 5 and later rope_parameters and dtype.
  out["rope_theta"] = shortest(config.rope_theta);
  out["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", shortest(config.rope_theta)}};
  const char* const dtype_name = dtype == DType::bf16 ? "bfloat16" : "float32";
  out["torch_dtype"] = out["dtype"] = dtype_name;
  if (architecture == HfArchitecture::llama) out["mlp_bias"] = config.mlp_bias;
  if (architecture == HfArchitecture::qwen3) out["use_sliding_window"] = false;
  if (architecture == HfArchitecture::qwen3_5) {
    out["rope_parameters"]["partial_rotary_factor"] = shortest(config.rope_fraction);
    out["layer_types"] = std::vector<std::string>(static_cast<std::size_t>(config.layers), "full_attention");
    out["attn_output_gate"] = true;
  }
  const ordered_json token = document_token >= 0 ? ordered_json(document_token) : ordered_json();
  out["bos_token_id"] = token;
  out["eos_token_id"] = token;
  return out.dump(2) + "\n";
}

HfModel parse_hf_config(std::string_view text, const std::string& source, GateLayout layout,
                        std::span<const std::string> ignored) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) fail(ErrorKind::data, "{}: expected a JSON object", source);
  Reader reader(object, source);
  HfModel model;
  model.gate_layout = layout;
  ModelConfig& config = model.config;
  model.architecture = read_architecture(reader);
  if (layout == GateLayout::per_kv_group && model.architecture != HfArchitecture::qwen3)
    reader.refuse(
        "--gate-layout per-kv-group: expected model_type qwen3, on which the gate paper's code builds");
  const bool stock_gate = model.architecture == HfArchitecture::qwen3_5;
  read_sizes(reader, name_of(model.architecture), config);
  read_rotary(reader, source, model.architecture, config);
  check_sizes(reader, config);
  read_activation(reader, config);
  read_layer_types(reader, config, stock_gate);
  config.norm = NormKind::rms;
  config.norm_epsilon = reader.number("rms_norm_eps", 1e-6f);
  config.init_std = reader.number("initializer_range", 0.02f);
  config.tie_embeddings = reader.boolean("tie_word_embeddings", false);
  config.mlp_bias = model.architecture == HfArchitecture::llama && reader.boolean("mlp_bias", false);
  config.qk_norm = model.architecture == HfArchitecture::llama ? QkNorm::none : QkNorm::pre_rope;
  config.gate = stock_gate ? GateKind::elementwise : GateKind::none;
  config.qkv_bias = reader.boolean("attention_bias", false);
  if (model.architecture == HfArchitecture::qwen3) read_paper_gate(reader, layout, config);
  config.out_bias = config.qkv_bias;
  config.gate_bias = config.qkv_bias && config.gate != GateKind::none;
  reader.expect("attention_dropout", 0.0, "Quaver has no dropout");
  reader.expect("use_sliding_window", false, "Quaver's attention has no window");
  if (stock_gate) reader.expect("attn_output_gate", true, "this architecture is gated");
  ignore_harmless(reader);
  reader.ignore(ignored);
  reader.refuse_unknown_keys();
  return model;
}

}  // namespace quaver
