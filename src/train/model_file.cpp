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
    load_master(name, parameter.value);
    ++parameter.version;
    ++count;
  }

  std::size_t count = 0;

 private:
  /// A weight stored in the other real type is converted: widened, or rounded to nearest.
  void load_master(const std::string& name, const Tensor& master) {
    const NamedArray* array = file_.find(name);
    const DType stored = array ? array->dtype : master.dtype();
    if (stored == master.dtype() || (stored != DType::f32 && stored != DType::bf16))
      return load_array(backend_, file_, path_, name, master);
    const Tensor as_stored = backend_.allocate(stored, master.shape());
    load_array(backend_, file_, path_, name, as_stored);
    backend_.convert(as_stored, master);
  }

  Backend& backend_;
  const Safetensors& file_;
  const std::string& path_;
};

}  // namespace

NamedArray to_array(Backend& backend, const std::string& name, const Tensor& tensor) {
  NamedArray array{name, tensor.dtype(), tensor.shape(), {}};
  array.bytes.resize(static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype()));
  backend.copy_to_host(tensor, array.bytes.data());
  return array;
}

void load_array(Backend& backend, const Safetensors& file, const std::string& path, const std::string& name,
                const Tensor& tensor) {
  const NamedArray* array = file.find(name);
  if (!array) fail(ErrorKind::data, "{}: holds no {}, which config.toml asks for", path, name);
  if (array->dtype != tensor.dtype() || array->shape != tensor.shape()) {
    fail(ErrorKind::data, "{}: {} is {} {}, expected {} {}", path, name, name_of(array->dtype),
         to_string(array->shape), name_of(tensor.dtype()), to_string(tensor.shape()));
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
