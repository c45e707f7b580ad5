#include "train/model_file.h"

#include <charconv>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr const char* kFormatVersion = "1";

class ParameterReader : public ModuleVisitor {
 public:
  explicit ParameterReader(Backend& backend) : backend_(backend) {}

  void parameter(const std::string& name, Parameter& parameter) override {
    arrays.push_back(to_array(backend_, name, parameter.value));
  }

  std::vector<NamedArray> arrays;

 private:
  Backend& backend_;
};

class ParameterWriter : public ModuleVisitor {
 public:
  ParameterWriter(Backend& backend, const Safetensors& file, const std::string& path)
      : backend_(backend), file_(file), path_(path) {}

  void parameter(const std::string& name, Parameter& parameter) override {
    load_array(backend_, file_, path_, name, parameter.value);
    ++parameter.version;
    ++count;
  }

  std::size_t count = 0;

 private:
  Backend& backend_;
  const Safetensors& file_;
  const std::string& path_;
};

}  // namespace

NamedArray to_array(Backend& backend, const std::string& name, const Tensor& tensor) {
  NamedArray array{name, DType::f32, tensor.shape(), {}};
  array.bytes.resize(static_cast<std::size_t>(tensor.elements()) * sizeof(float));
  backend.copy_to_host(tensor, array.bytes.data());
  return array;
}

void load_array(Backend& backend, const Safetensors& file, const std::string& path, const std::string& name,
                const Tensor& tensor) {
  const NamedArray* array = file.find(name);
  if (!array) fail(ErrorKind::data, "{}: holds no {}, which config.toml asks for", path, name);
  if (array->dtype != DType::f32 || array->shape != tensor.shape()) {
    fail(ErrorKind::data, "{}: {} is {} {}, expected f32 {}", path, name, name_of(array->dtype),
         to_string(array->shape), to_string(tensor.shape()));
  }
  backend.copy_from_host(array->bytes.data(), tensor);
}

std::vector<NamedArray> capture_parameters(LanguageModel& model) {
  ParameterReader reader(model.backend());
  model.visit("", reader);
  return std::move(reader.arrays);
}

void load_parameters(LanguageModel& model, const Safetensors& file, const std::string& path) {
  ParameterWriter writer(model.backend(), file, path);
  model.visit("", writer);
  if (writer.count != file.arrays.size()) {
    fail(ErrorKind::data, "{}: holds {} arrays, the model of config.toml has {} parameters", path,
         file.arrays.size(), writer.count);
  }
}

std::map<std::string, std::string> part_metadata(std::int64_t step) {
  return {{"format_version", kFormatVersion}, {"step", std::to_string(step)}};
}

std::string metadata_of(const Safetensors& file, const std::string& key, const std::string& path) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) fail(ErrorKind::data, "{}: has no \"{}\" in its metadata", path, key);
  return found->second;
}

Safetensors read_part(const std::string& path) {
  Safetensors file = read_safetensors(path);
  const std::string version = metadata_of(file, "format_version", path);
  if (version != kFormatVersion) {
    fail(ErrorKind::data, "{}: format version {}, expected {}", path, version, kFormatVersion);
  }
  return file;
}

std::int64_t step_of(const Safetensors& file, const std::string& path) {
  const std::string text = metadata_of(file, "step", path);
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0) {
    fail(ErrorKind::data, "{}: \"{}\" is not a number of steps", path, text);
  }
  return step;
}

}  // namespace quaver
