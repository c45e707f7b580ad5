#include "interop/model_arrays.h"

#include <utility>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

/// One of the projections that stand in the rows of qkv_proj.
struct Part {
  const char* name;
  std::int64_t rows;
  bool has_bias;
};

std::vector<Part> parts_of(const ModelConfig& config) {
  const std::int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  std::vector<Part> parts{
      {"q_proj", q, config.qkv_bias}, {"k_proj", kv, config.qkv_bias}, {"v_proj", kv, config.qkv_bias}};
  if (config.gate != GateKind::none) parts.push_back({"gate_proj", gate_features(config), config.gate_bias});
  return parts;
}

std::string attention_name(std::int64_t layer) {
  return "blocks." + std::to_string(layer) + ".attention.";
}

/// The next `rows` rows of `from`, which begin at `begin`.
FloatArray take_rows(const FloatArray& from, std::int64_t rows, std::size_t& begin) {
  FloatArray part{from.shape, {}};
  part.shape.front() = rows;
  const auto count = static_cast<std::size_t>(element_count(part.shape));
  const auto first = from.values.begin() + static_cast<std::ptrdiff_t>(begin);
  part.values.assign(first, first + static_cast<std::ptrdiff_t>(count));
  begin += count;
  return part;
}

void append_rows(FloatArray& to, const FloatArray& part) {
  if (to.shape.empty()) {
    to = part;
    return;
  }
  to.shape.front() += part.shape.front();
  to.values.insert(to.values.end(), part.values.begin(), part.values.end());
}

void take_apart(const ModelConfig& config, FloatArrays& arrays) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string name = attention_name(layer);
    const auto weight = arrays.extract(name + "qkv_proj.weight"),
               bias = arrays.extract(name + "qkv_proj.bias");
    std::size_t weight_at = 0, bias_at = 0;
    for (const Part& part : parts_of(config)) {
      arrays[name + part.name + ".weight"] = take_rows(weight.mapped(), part.rows, weight_at);
      if (part.has_bias) arrays[name + part.name + ".bias"] = take_rows(bias.mapped(), part.rows, bias_at);
    }
  }
}

void put_together(const ModelConfig& config, FloatArrays& arrays) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string name = attention_name(layer);
    for (const char* kind : {".weight", ".bias"}) {
      FloatArray packed;
      for (const Part& part : parts_of(config)) {
        const auto found = arrays.extract(name + part.name + kind);
        if (found) append_rows(packed, found.mapped());
      }
      if (!packed.shape.empty()) arrays[name + "qkv_proj" + kind] = std::move(packed);
    }
  }
}

class Reader : public ModuleVisitor {
 public:
  explicit Reader(Backend& backend) : backend_(backend) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    arrays[name] = {parameter.value.shape(), download(backend_, parameter.value)};
  }
  FloatArrays arrays;

 private:
  Backend& backend_;
};

class Writer : public ModuleVisitor {
 public:
  Writer(Backend& backend, FloatArrays& arrays) : backend_(backend), arrays_(arrays) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    const auto array = arrays_.extract(name);
    if (!array) fail(ErrorKind::data, "{}: the model has this parameter, but no values for it came", name);
    if (array.mapped().shape != parameter.value.shape()) {
      fail(ErrorKind::data, "{}: expected the shape {}, found {}", name, to_string(parameter.value.shape()),
           to_string(array.mapped().shape));
    }
    backend_.copy_from_host(array.mapped().values.data(), parameter.value);
    ++parameter.version;
  }

 private:
  Backend& backend_;
  FloatArrays& arrays_;
};

}  // namespace

FloatArrays read_parameters(LanguageModel& model) {
  Reader reader(model.backend());
  model.visit("", reader);
  if (model.config().packed_qkv) take_apart(model.config(), reader.arrays);
  return std::move(reader.arrays);
}

void write_parameters(LanguageModel& model, FloatArrays arrays) {
  if (model.config().packed_qkv) put_together(model.config(), arrays);
  Writer writer(model.backend(), arrays);
  model.visit("", writer);
  if (!arrays.empty()) fail(ErrorKind::data, "{}: the model has no such parameter", arrays.begin()->first);
}

}  // namespace quaver
