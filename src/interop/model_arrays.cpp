#include "interop/model_arrays.h"

#include <utility>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

/// One of the projections that stand in the rows of a packed one.
struct Part {
  const char* name;
  std::int64_t rows;
  bool has_bias;
};
struct PackedLinear {
  std::string module, name;  ///< of "blocks.0.attention.qkv_proj": "blocks.0.attention." and "qkv_proj"
  std::vector<Part> parts;
};

std::vector<Part> qkv_parts(const ModelConfig& config) {
  const std::int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  std::vector<Part> parts{
      {"q_proj", q, config.qkv_bias}, {"k_proj", kv, config.qkv_bias}, {"v_proj", kv, config.qkv_bias}};
  if (config.gate != GateKind::none) parts.push_back({"gate_proj", gate_features(config), config.gate_bias});
  return parts;
}
std::vector<Part> gate_up_parts(const ModelConfig& config) {
  return {{"gate_proj", config.ffn_width, config.mlp_bias}, {"up_proj", config.ffn_width, config.mlp_bias}};
}

std::vector<PackedLinear> packed_linears(const ModelConfig& config) {
  std::vector<PackedLinear> packed;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer);
    if (config.packed_qkv) packed.push_back({block + ".attention.", "qkv_proj", qkv_parts(config)});
    if (packs_gate_up(config)) packed.push_back({block + ".mlp.", "gate_up_proj", gate_up_parts(config)});
  }
  return packed;
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

void take_apart(const PackedLinear& packed, FloatArrays& arrays) {
  const auto weight = arrays.extract(packed.module + packed.name + ".weight"),
             bias = arrays.extract(packed.module + packed.name + ".bias");
  std::size_t weight_at = 0, bias_at = 0;
  for (const Part& part : packed.parts) {
    const std::string name = packed.module + part.name;
    arrays[name + ".weight"] = take_rows(weight.mapped(), part.rows, weight_at);
    if (part.has_bias) arrays[name + ".bias"] = take_rows(bias.mapped(), part.rows, bias_at);
  }
}

void put_together(const PackedLinear& packed, FloatArrays& arrays) {
  for (const char* kind : {".weight", ".bias"}) {
    FloatArray all;
    for (const Part& part : packed.parts) {
      const auto found = arrays.extract(packed.module + part.name + kind);
      if (found) append_rows(all, found.mapped());
    }
    if (!all.shape.empty()) arrays[packed.module + packed.name + kind] = std::move(all);
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
  for (const PackedLinear& packed : packed_linears(model.config())) take_apart(packed, reader.arrays);
  return std::move(reader.arrays);
}

void write_parameters(LanguageModel& model, FloatArrays arrays) {
  for (const PackedLinear& packed : packed_linears(model.config())) put_together(packed, arrays);
  Writer writer(model.backend(), arrays);
  model.visit("", writer);
  if (!arrays.empty()) fail(ErrorKind::data, "{}: the model has no such parameter", arrays.begin()->first);
}

}  // namespace quaver
