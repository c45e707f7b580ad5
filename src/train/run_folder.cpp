#include "train/run_folder.h"

#include <charconv>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "train/fp8_policy.h"

namespace quaver {
namespace {

constexpr const char* kFormatVersion = "1";

std::string model_path(const std::string& run) {
  return run + "/model.safetensors";
}

std::string fp8_state_path(const std::string& run) {
  return run + "/fp8_state.safetensors";
}

std::string next_of(const std::string& path) {
  return path + ".next";
}

class ParameterReader : public ModuleVisitor {
 public:
  explicit ParameterReader(Backend& backend) : backend_(backend) {}

  void parameter(const std::string& name, Parameter& parameter) override {
    const Tensor& value = parameter.value;
    NamedArray array{name, DType::f32, value.shape(), {}};
    array.bytes.resize(static_cast<std::size_t>(value.elements()) * sizeof(float));
    backend_.copy_to_host(value, array.bytes.data());
    arrays.push_back(std::move(array));
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
    const NamedArray* array = file_.find(name);
    if (!array) fail(ErrorKind::data, "{}: holds no {}, which config.toml asks for", path_, name);
    if (array->dtype != DType::f32 || array->shape != parameter.value.shape()) {
      fail(ErrorKind::data, "{}: {} is {} {}, expected f32 {}", path_, name, name_of(array->dtype),
           to_string(array->shape), to_string(parameter.value.shape()));
    }
    backend_.copy_from_host(array->bytes.data(), parameter.value);
    ++parameter.version;
    ++count;
  }

  std::size_t count = 0;

 private:
  Backend& backend_;
  const Safetensors& file_;
  const std::string& path_;
};

void load_parameters(LanguageModel& model, const Safetensors& file, const std::string& path) {
  ParameterWriter writer(model.backend(), file, path);
  model.visit("", writer);
  if (writer.count != file.arrays.size()) {
    fail(ErrorKind::data, "{}: holds {} arrays, the model of config.toml has {} parameters", path,
         file.arrays.size(), writer.count);
  }
}

std::string metadata_of(const Safetensors& file, const std::string& key, const std::string& path) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) fail(ErrorKind::data, "{}: has no \"{}\" in its metadata", path, key);
  return found->second;
}

std::int64_t step_from(const std::string& text, const std::string& path) {
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0) {
    fail(ErrorKind::data, "{}: \"{}\" is not a number of steps", path, text);
  }
  return step;
}

Safetensors read_part(const std::string& path) {
  Safetensors file = read_safetensors(path);
  const std::string version = metadata_of(file, "format_version", path);
  if (version != kFormatVersion) {
    fail(ErrorKind::data, "{}: format version {}, expected {}", path, version, kFormatVersion);
  }
  return file;
}

void require_run(const std::string& run) {
  if (!std::filesystem::exists(config_path(run))) {
    fail(ErrorKind::data, "{}: not a run folder: it holds no config.toml", run);
  }
  if (!std::filesystem::exists(model_path(run))) {
    fail(ErrorKind::data, "{}: holds no model.safetensors: training stopped before its first save", run);
  }
}

void replace(const std::string& path) {
  std::error_code error;
  std::filesystem::rename(next_of(path), path, error);
  if (error) fail(ErrorKind::failure, "{}: cannot replace: {}", path, error.message());
}

/// Slots are as long as the recipe they were saved under; another length would start them anew, at scale 1.
void require_same_history(const RunConfig& config, const std::vector<LinearState>& states) {
  if (config.precision != Precision::fp8) return;
  for (const LinearState& state : states) {
    if (!state.recipe) continue;
    const int saved = std::get<DelayedScaling>(*state.recipe).amax_history_len;
    require(saved == config.fp8.amax_history_len, "fp8.amax_history_len: {} was trained with {}, found {}",
            state.name, saved, config.fp8.amax_history_len);
  }
}

}  // namespace

std::string config_path(const std::string& run) {
  return run + "/config.toml";
}

std::string metrics_path(const std::string& run) {
  return run + "/metrics.jsonl";
}

void create_run_folder(const RunConfig& config) {
  const std::string& run = config.run.dir;
  require(!std::filesystem::exists(config_path(run)) && !std::filesystem::exists(model_path(run)),
          "run.dir: {} already holds a run. Hint: choose another run.dir, or delete that folder", run);
  make_directories(run);
  copy_tokenizer(config.data.tokenizer, run);
  write_file_atomically(config_path(run), to_toml(config));
}

void save_model(const RunConfig& config, LanguageModel& model, std::int64_t step) {
  const std::string model_file = model_path(config.run.dir), fp8_file = fp8_state_path(config.run.dir);
  const std::map<std::string, std::string> metadata = {{"format_version", kFormatVersion},
                                                       {"step", std::to_string(step)},
                                                       {"seed", std::to_string(config.train.seed)}};
  ParameterReader reader(model.backend());
  model.visit("", reader);
  Safetensors fp8 = to_safetensors(capture_fp8_state(model.backend(), model));
  fp8.metadata.insert(metadata.begin(), metadata.end());
  try {
    write_safetensors(next_of(model_file), reader.arrays, metadata);
    write_safetensors(next_of(fp8_file), fp8.arrays, fp8.metadata);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(next_of(model_file), ignored);
    std::filesystem::remove(next_of(fp8_file), ignored);
    throw;
  }
  replace(model_file);
  replace(fp8_file);
}

LoadedRun load_run(const std::string& run, std::span<const std::string> overrides) {
  require_run(run);
  LoadedRun loaded;
  loaded.config = load_run_config(config_path(run), overrides);
  if (names_tokenizer_file(loaded.config.data.tokenizer)) loaded.config.data.tokenizer = run;
  const RunConfig& config = loaded.config;
  require(!config.fp8.measured, "fp8.auto: chooses when training starts; {} holds that choice",
          config_path(run));
  const std::string model_file = model_path(run), fp8_file = fp8_state_path(run);
  const Safetensors parameters = read_part(model_file), fp8 = read_part(fp8_file);
  const std::string step = metadata_of(parameters, "step", model_file);
  if (metadata_of(fp8, "step", fp8_file) != step) {
    fail(ErrorKind::data, "{}: of step {}, but model.safetensors is of step {}: saving was interrupted",
         fp8_file, metadata_of(fp8, "step", fp8_file), step);
  }
  loaded.step = step_from(step, model_file);
  loaded.model = std::make_unique<LanguageModel>(make_backend(config.backend, config.threads), config.model,
                                                 config.train.seed);
  apply_fp8_policy(*loaded.model, config.fp8, config.model.layers);
  load_parameters(*loaded.model, parameters, model_file);
  const std::vector<LinearState> states = fp8_state_from(fp8, fp8_file);
  require_same_history(config, states);
  restore_fp8_state(loaded.model->backend(), *loaded.model, states);
  return loaded;
}

void load_weights(const std::string& run, const RunConfig& config, LanguageModel& model) {
  require_run(run);
  for (const std::string& key : differing_keys(load_run_config(config_path(run)), config)) {
    require(!describes_weights(key),
            "{}: differs from that of train.init = \"{}\", whose weights it describes", key, run);
  }
  load_parameters(model, read_part(model_path(run)), model_path(run));
}

std::vector<LinearState> load_fp8_state(const std::string& run) {
  require_run(run);
  const std::string path = fp8_state_path(run);
  return fp8_state_from(read_part(path), path);
}

}  // namespace quaver
