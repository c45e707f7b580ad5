#include "train/run_config_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <utility>

#include "quaver/backend.h"
#include "train/fp8_recipes.h"

namespace quaver {
namespace {

/// The interval a number must lie in.
struct Interval {
  double low, high;
  bool includes_low, includes_high;

  bool contains(double x) const {
    return std::isfinite(x) && (includes_low ? x >= low : x > low) && (includes_high ? x <= high : x < high);
  }
  std::string describe() const {
    if (low == -FLT_MAX) return "a finite number";
    if (high == FLT_MAX) return fmt::format("a finite number {} {}", includes_low ? ">=" : ">", low);
    return fmt::format("a number in {}{}, {}{}", includes_low ? '[' : '(', low, high,
                       includes_high ? ']' : ')');
  }
};

constexpr Interval kFinite{-FLT_MAX, FLT_MAX, true, true};
constexpr Interval kPositive{0, FLT_MAX, false, true};
constexpr Interval kNotNegative{0, FLT_MAX, true, true};
constexpr Interval kShare{0, 1, true, true};           // [0, 1]
constexpr Interval kPositiveShare{0, 1, false, true};  // (0, 1]
constexpr Interval kBelowOne{0, 1, true, false};       // [0, 1)
constexpr Interval kBetween{0, 1, false, false};       // (0, 1)
constexpr std::int64_t kNoLimit = std::numeric_limits<std::int64_t>::max();

/// fmt writes the shortest decimal number that reads back as `value`; TOML would take "1" for an integer.
template <typename T>
std::string shortest(T value) {
  const std::string text = fmt::format("{}", value);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

/// Adds the fields of one section to the table. `at(config)` is the section's struct, of a const or a mutable
/// RunConfig.
template <typename At>
class Section {
 public:
  Section(std::vector<ConfigField>& fields, std::string name, At at)
      : fields_(fields), prefix_(name.empty() ? "" : name + "."), at_(at) {}

  template <typename S, typename T>
  void integer(const char* key, T S::*member, std::int64_t low, std::int64_t high, const char* doc) {
    ConfigField& field = add(key, doc);
    field.expected = high == kNoLimit ? fmt::format("an integer >= {}", low)
                                      : fmt::format("an integer in [{}, {}]", low, high);
    field.assign = [=, at = at_](RunConfig& config, const ConfigValue& value) {
      const auto* number = std::get_if<std::int64_t>(&value);
      if (!number || *number < low || *number > high) return false;
      at(config).*member = static_cast<T>(*number);
      return true;
    };
    field.toml = [=, at = at_](const RunConfig& config) { return fmt::format("{}", at(config).*member); };
  }

  /// A float or double; a TOML integer will do. The interval holds for the value as stored.
  template <typename S, typename T>
  void number(const char* key, T S::*member, Interval interval, const char* doc) {
    ConfigField& field = add(key, doc);
    field.expected = interval.describe();
    field.assign = [=, at = at_](RunConfig& config, const ConfigValue& value) {
      const auto* whole = std::get_if<std::int64_t>(&value);
      const auto* real = std::get_if<double>(&value);
      if (!whole && !real) return false;
      const double given = whole ? static_cast<double>(*whole) : *real;
      if (!interval.contains(given) || !interval.contains(static_cast<T>(given))) return false;
      at(config).*member = static_cast<T>(given);
      return true;
    };
    field.toml = [=, at = at_](const RunConfig& config) { return number_to_toml(at(config).*member); };
  }

  template <typename S>
  void boolean(const char* key, bool S::*member, const char* doc) {
    ConfigField& field = add(key, doc);
    field.expected = "true or false";
    field.assign = [=, at = at_](RunConfig& config, const ConfigValue& value) {
      const auto* truth = std::get_if<bool>(&value);
      if (truth) at(config).*member = *truth;
      return truth != nullptr;
    };
    field.toml = [=, at = at_](const RunConfig& config) { return at(config).*member ? "true" : "false"; };
  }

  template <typename S>
  ConfigField& text(const char* key, std::string S::*member, const char* doc) {
    ConfigField& field = add(key, doc);
    field.expected = "a string that is not empty";
    field.is_text = true;
    field.assign = [=, at = at_](RunConfig& config, const ConfigValue& value) {
      const auto* word = std::get_if<std::string>(&value);
      if (!word || word->empty()) return false;
      at(config).*member = *word;
      return true;
    };
    field.toml = [=, at = at_](const RunConfig& config) { return quote_toml(at(config).*member); };
    return field;
  }

  /// One of several words; the i-th stands for the value i of an enumeration (or a bool).
  template <typename S, typename T>
  void choice(const char* key, T S::*member, std::vector<std::string> words, const char* doc) {
    ConfigField& field = add(key, doc);
    field.expected = describe_choices(words);
    field.choices = words;
    field.is_text = true;
    field.assign = [=, at = at_](RunConfig& config, const ConfigValue& value) {
      const auto* word = std::get_if<std::string>(&value);
      const auto found = word ? std::find(words.begin(), words.end(), *word) : words.end();
      if (found == words.end()) return false;
      at(config).*member = static_cast<T>(found - words.begin());
      return true;
    };
    field.toml = [=, at = at_](const RunConfig& config) {
      return quote_toml(words.at(static_cast<std::size_t>(at(config).*member)));
    };
  }

  /// One of several words, kept as a word.
  template <typename S>
  void word(const char* key, std::string S::*member, std::vector<std::string> words, const char* doc) {
    ConfigField& field = text(key, member, doc);
    field.expected = describe_choices(words);
    field.choices = words;
    field.assign = [words, assign_text = field.assign](RunConfig& config, const ConfigValue& value) {
      const auto* given = std::get_if<std::string>(&value);
      return given && std::find(words.begin(), words.end(), *given) != words.end() &&
             assign_text(config, value);
    };
  }

 private:
  ConfigField& add(const char* key, const char* doc) {
    ConfigField& field = fields_.emplace_back();
    field.name = prefix_ + key;
    field.doc = doc;
    return field;
  }

  static std::string describe_choices(const std::vector<std::string>& words) {
    return fmt::format("one of \"{}\"", fmt::join(words, "\", \""));
  }

  std::vector<ConfigField>& fields_;
  std::string prefix_;
  At at_;
};

template <typename E>
std::vector<std::string> names_of(std::initializer_list<E> values) {
  std::vector<std::string> names;
  for (const E value : values) names.emplace_back(name_of(value));
  return names;
}

void add_top_level(std::vector<ConfigField>& fields) {
  Section top(
      fields, "", [](auto& config) -> auto& { return config; });
  top.choice("precision", &RunConfig::precision, names_of({Precision::fp8, Precision::bf16, Precision::fp32}),
             "how Linears and activations are computed");
  top.word("backend", &RunConfig::backend, backend_names(), "where operations run");
  top.integer("threads", &RunConfig::threads, 0, 1024, "0: every processor");
  top.choice("products", &RunConfig::products, {"exact", "fast"},
             "of the backend \"cpu\": the same bits on every processor, or the speed of its matrix unit");
  top.text("resume", &RunConfig::resume,
           "\"auto\": go on with the run in run.dir; \"none\"; or a checkpoint to begin at");
}

void add_model_sizes(std::vector<ConfigField>& fields) {
  Section model(
      fields, "model", [](auto& config) -> auto& { return config.model; });
  model.integer("width", &ModelConfig::width, 1, kMaxFeatures, "features of the residual stream");
  model.integer("layers", &ModelConfig::layers, 1, kMaxLayers, "blocks");
  model.integer("heads", &ModelConfig::heads, 1, kMaxHeads, "query heads");
  model.integer("kv_heads", &ModelConfig::kv_heads, 1, kMaxHeads, "key/value heads, a divisor of heads");
  model.integer("head_dim", &ModelConfig::head_dim, 1, kMaxHeadDim, "features of one head");
  model.integer("ffn_width", &ModelConfig::ffn_width, 1, kMaxFeatures, "hidden features of the feed-forward");
  model.integer("vocab", &ModelConfig::vocab, 1, kMaxFeatures,
                "token ids; at least those of data.tokenizer, 257 for bytes");
  model.integer("context", &ModelConfig::context, 1, kMaxFeatures, "sequence length");
}

void add_model_choices(std::vector<ConfigField>& fields) {
  Section model(
      fields, "model", [](auto& config) -> auto& { return config.model; });
  model.choice("norm", &ModelConfig::norm, {"rms", "layer"}, "RMSNorm or LayerNorm");
  model.number("norm_epsilon", &ModelConfig::norm_epsilon, kPositive, "of all norms");
  model.choice("qkv", &ModelConfig::packed_qkv, {"separate", "packed"},
               "q, k, v and gate in one GEMM or one each");
  model.choice("gate", &ModelConfig::gate, {"none", "headwise", "elementwise"}, "the attention gate");
  model.choice("gate_activation", &ModelConfig::gate_activation, {"sigmoid", "sigmoid2", "silu"},
               "sigmoid2 = 2 sigmoid");
  model.boolean("gate_bias", &ModelConfig::gate_bias, "whether the attention gate has a bias");
  model.number("gate_bias_init", &ModelConfig::gate_bias_init, kFinite, "its initial value");
  model.choice("qk_norm", &ModelConfig::qk_norm, {"none", "pre_rope", "post_rope"},
               "RMSNorm of the heads of q and k");
  model.choice("position", &ModelConfig::position, {"rope", "learned"},
               "rotary or learned position embedding");
  model.number("rope_theta", &ModelConfig::rope_theta, kPositive, "base of the rotary frequencies");
  model.number("rope_fraction", &ModelConfig::rope_fraction, kPositiveShare,
               "share of every head that is rotated");
  model.choice("mlp", &ModelConfig::mlp, {"swiglu", "geglu", "gelu"}, "activation of the feed-forward");
  model.choice("gate_up", &ModelConfig::packed_gate_up, {"separate", "packed"},
               "the feed-forward's gate and up in one GEMM or one each");
  model.choice("recompute", &ModelConfig::recompute, {"none", "gated", "attention", "block"},
               "what backward computes again instead of keeping it");
  model.boolean("qkv_bias", &ModelConfig::qkv_bias, "biases of q, k and v");
  model.boolean("out_bias", &ModelConfig::out_bias, "bias of the attention's out_proj");
  model.boolean("mlp_bias", &ModelConfig::mlp_bias, "biases of the feed-forward");
  model.boolean("head_bias", &ModelConfig::head_bias, "bias of lm_head");
  model.boolean("tie_embeddings", &ModelConfig::tie_embeddings, "lm_head shares the embedding's weight");
  model.number("init_std", &ModelConfig::init_std, kPositive, "of initial weights");
}

void add_data(std::vector<ConfigField>& fields) {
  Section data(
      fields, "data", [](auto& config) -> auto& { return config.data; });
  data.text("path", &DataConfig::path, "a file, a folder, or a pattern with *").required = true;
  data.choice("format", &DataConfig::format, {"auto", "text", "jsonl", "tokens"}, "what these files hold");
  data.text("text_field", &DataConfig::text_field, "the member of a JSONL line that is the document");
  data.text("tokenizer", &DataConfig::tokenizer,
            "\"bytes\", a tokenizer's file or folder, or \"none\" for shards whose tokenizer is not known");
  data.text("document_token", &DataConfig::document_token, "the token before documents; auto: the usual one");
  data.number("val_fraction", &DataConfig::val_fraction, kBetween, "share held back for validation");
  data.integer("max_bytes", &DataConfig::max_bytes, 0, kNoLimit, "stop gathering after that many; 0: all");
  data.integer("piece_bytes", &DataConfig::piece_bytes, 1, std::int64_t{1} << 40,
               "one file is cut into documents of about this size");
  data.boolean("document_mask", &DataConfig::document_mask, "attention does not cross document boundaries");
}

void add_train(std::vector<ConfigField>& fields) {
  Section train(
      fields, "train", [](auto& config) -> auto& { return config.train; });
  train.integer("steps", &TrainConfig::steps, 1, std::int64_t{1} << 40, "optimizer steps");
  train.integer("seed", &TrainConfig::seed, 0, kNoLimit, "of initial weights and of the order of the data");
  train.number("lr", &TrainConfig::lr, kPositiveShare, "the highest learning rate");
  train.number("min_lr_ratio", &TrainConfig::min_lr_ratio, kShare,
               "the last learning rate, as a share of lr");
  train.choice("schedule", &TrainConfig::schedule, names_of({ScheduleKind::cosine, ScheduleKind::wsd}),
               "wsd: warm-up, stable, decay");
  train.integer("warmup_steps", &TrainConfig::warmup_steps, 0, std::int64_t{1} << 40,
                "the learning rate rises over these");
  train.number("decay_fraction", &TrainConfig::decay_fraction, kShare,
               "wsd: share of all steps in which it falls");
  train.integer("batch", &TrainConfig::batch, 1, std::int64_t{1} << 20, "sequences per micro-batch");
  train.integer("accumulation", &TrainConfig::accumulation, 1, std::int64_t{1} << 20,
                "micro-batches per optimizer step");
  train.number("beta1", &TrainConfig::beta1, kBelowOne, "AdamW");
  train.number("beta2", &TrainConfig::beta2, kBelowOne, "AdamW");
  train.number("epsilon", &TrainConfig::epsilon, kPositive, "AdamW");
  train.number("weight_decay", &TrainConfig::weight_decay, kNotNegative, "AdamW, decoupled");
  train.number("clip", &TrainConfig::clip, kNotNegative,
               "largest norm of all gradients together; 0: no clipping");
  train.integer("eval_every", &TrainConfig::eval_every, 0, kNoLimit,
                "steps between evaluations; 0: only at the end");
  train.integer("eval_batches", &TrainConfig::eval_batches, 0, kNoLimit,
                "validation batches per evaluation; 0: all");
  train.integer("log_every", &TrainConfig::log_every, 1, kNoLimit, "steps between log lines");
  train.integer("save_every", &TrainConfig::save_every, 0, kNoLimit,
                "steps between checkpoints; 0: only at the end");
  train.integer("keep_checkpoints", &TrainConfig::keep_checkpoints, 1, kNoLimit,
                "so many of the newest are kept");
  train.boolean("tensorboard", &TrainConfig::tensorboard,
                "also write TensorBoard event files to the run folder");
  train.choice("nonfinite", &TrainConfig::nonfinite, {"stop", "skip"},
               "what a step with a NaN or infinity does: end the run, or leave out its update");
  train.integer("max_skips", &TrainConfig::max_skips, 1, kNoLimit,
                "skip: so many steps left out one after the other end the run");
  train.text("init", &TrainConfig::init, "\"random\", or a run folder whose weights to begin with");
}

void add_optimizer(std::vector<ConfigField>& fields) {
  Section optimizer(
      fields, "optimizer", [](auto& config) -> auto& { return config.optimizer; });
  optimizer.choice("moments", &OptimizerConfig::moments, {"f32", "bf16", "fp8"},
                   "how AdamW's moments are stored; fp8: E4M3 with a scale for every 128");
  optimizer.choice("masters", &OptimizerConfig::masters, {"f32", "bf16"},
                   "how weight matrices and embeddings are stored; bf16: updates are rounded stochastically");
}

void add_fp8(std::vector<ConfigField>& fields) {
  Section fp8(
      fields, "fp8", [](auto& config) -> auto& { return config.fp8; });
  fp8.word("recipe", &Fp8Config::recipe, recipe_names(), "how scales are chosen");
  fp8.choice("format", &Fp8Config::format, names_of({Fp8Format::hybrid, Fp8Format::e4m3}),
             "of delayed and current; hybrid: gradients in E5M2, all else in E4M3");
  fp8.choice("mxfp8_format", &Fp8Config::mxfp8_format, names_of({Fp8Format::hybrid, Fp8Format::e4m3}),
             "the same of mxfp8");
  fp8.integer("margin", &Fp8Config::margin, -16, 16, "scales are 2^-margin of what fills the format");
  fp8.integer("amax_history_len", &Fp8Config::amax_history_len, 1, 1 << 20, "amaxes remembered per tensor");
  fp8.choice("amax_compute_algo", &Fp8Config::amax_compute_algo,
             names_of({AmaxCompute::max, AmaxCompute::most_recent}), "which of them sets the scale");
  fp8.boolean("smooth_swiglu", &Fp8Config::smooth_swiglu,
              "one power of two per channel of down_proj's input, against outliers");
  fp8.boolean("lm_head", &Fp8Config::lm_head, "lm_head in FP8; false: BF16");
  fp8.integer("bf16_end_layers", &Fp8Config::bf16_end_layers, 0, kMaxLayers,
              "so many first and so many last blocks in BF16");
  fp8.integer("histogram_every", &Fp8Config::histogram_every, 0, kNoLimit,
              "steps between those that count the exponents of what is cast; 0: never");
  fp8.boolean("auto", &Fp8Config::measured, "BF16 for every product that FP8 does not make faster here");
}

std::vector<ConfigField> make_fields() {
  std::vector<ConfigField> fields;
  add_top_level(fields);
  add_model_sizes(fields);
  add_model_choices(fields);
  add_data(fields);
  add_train(fields);
  add_optimizer(fields);
  add_fp8(fields);
  Section run(
      fields, "run", [](auto& config) -> auto& { return config.run; });
  run.text("dir", &RunFolder::dir, "the resolved run file, metrics and checkpoints go here");
  return fields;
}

}  // namespace

std::span<const ConfigField> run_config_fields() {
  static const std::vector<ConfigField> fields = make_fields();
  return fields;
}

const ConfigField* find_config_field(std::string_view name) {
  const auto fields = run_config_fields();
  const auto found = std::find_if(fields.begin(), fields.end(),
                                  [&](const ConfigField& field) { return field.name == name; });
  return found == fields.end() ? nullptr : &*found;
}

std::string_view section_of(std::string_view name) {
  const std::size_t dot = name.find('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

std::vector<std::string> config_sections() {
  std::vector<std::string> sections;
  for (const ConfigField& field : run_config_fields()) {
    const std::string section(section_of(field.name));
    if (!section.empty() && (sections.empty() || sections.back() != section)) sections.push_back(section);
  }
  return sections;
}

std::string number_to_toml(float value) {
  return shortest(value);
}

std::string number_to_toml(double value) {
  return shortest(value);
}

std::string quote_toml(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      quoted += fmt::format("\\u{:04X}", byte);
    } else {
      if (c == '"' || c == '\\') quoted += '\\';
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace quaver
