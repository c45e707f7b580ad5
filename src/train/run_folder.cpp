#include "train/run_folder.h"

#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "train/fp8_policy.h"
#include "train/metrics.h"
#include "train/model_file.h"

namespace quaver {
namespace {

std::string next_of(const std::string& path) {
  return path + ".next";
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

/// The folder with the run's tokenizer: of a checkpoint, that of the run it belongs to.
std::string tokenizer_folder(const std::string& run) {
  const bool is_checkpoint = std::filesystem::exists(run + "/" + kManifestName);
  return is_checkpoint ? run + "/../.." : run;
}

/// Slots are as long as the recipe they were saved under; another length would start them anew, at scale 1.
void require_same_history(const RunConfig& config, const std::vector<LinearState>& states) {
  if (config.precision != Precision::fp8) return;
  for (const LinearState& state : states) {
    if (!state.recipe || !is_delayed(*state.recipe)) continue;
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

std::string model_path(const std::string& run) {
  return run + "/model.safetensors";
}

std::string fp8_state_path(const std::string& run) {
  return run + "/fp8_state.safetensors";
}

std::string optimizer_path(const std::string& checkpoint) {
  return checkpoint + "/optimizer.safetensors";
}

std::string checkpoints_path(const std::string& run) {
  return run + "/checkpoints";
}

bool holds_run(const std::string& run) {
  return std::filesystem::exists(config_path(run)) || std::filesystem::exists(model_path(run));
}

void create_run_folder(const RunConfig& config) {
  const std::string& run = config.run.dir;
  require(!holds_run(run),
          "run.dir: {} already holds a run. Hint: choose another run.dir, or delete that folder", run);
  make_directories(run);
  copy_tokenizer(config.data.tokenizer, run);
  write_file_atomically(config_path(run), to_toml(config));
}

void continue_run_folder(const RunConfig& config, std::int64_t step) {
  const std::string metrics = metrics_path(config.run.dir);
  if (std::filesystem::exists(metrics))
    write_file_atomically(metrics, metrics_until(step, read_file(metrics)));
  write_file_atomically(config_path(config.run.dir), to_toml(config));
}

void save_model(const RunConfig& config, LanguageModel& model, std::int64_t step) {
  const std::string model_file = model_path(config.run.dir), fp8_file = fp8_state_path(config.run.dir);
  const auto metadata = part_metadata(step);
  Safetensors fp8 = to_safetensors(capture_fp8_state(model.backend(), model));
  fp8.metadata.insert(metadata.begin(), metadata.end());
  try {
    write_safetensors(next_of(model_file), capture_parameters(model), metadata);
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

void publish_model(const std::string& checkpoint, const std::string& run) {
  for (const auto& path_in : {model_path, fp8_state_path}) {
    const std::string from = path_in(checkpoint), next = next_of(path_in(run));
    std::error_code error;
    std::filesystem::remove(next, error);
    std::filesystem::create_hard_link(from, next, error);
    if (error) std::filesystem::copy_file(from, next, error);
    if (error) fail(ErrorKind::failure, "{}: cannot write: {}", next, error.message());
  }
  replace(model_path(run));
  replace(fp8_state_path(run));
}

LoadedRun load_run(const std::string& run, std::span<const std::string> overrides) {
  require_run(run);
  LoadedRun loaded;
  loaded.config = load_run_config(config_path(run), overrides);
  if (names_tokenizer_file(loaded.config.data.tokenizer))
    loaded.config.data.tokenizer = tokenizer_folder(run);
  const RunConfig& config = loaded.config;
  require(!config.fp8.measured, "fp8.auto: chooses when training starts; {} holds that choice",
          config_path(run));
  const std::string model_file = model_path(run), fp8_file = fp8_state_path(run);
  const Safetensors parameters = read_part(model_file), fp8 = read_part(fp8_file);
  loaded.step = step_of(parameters, model_file);
  if (step_of(fp8, fp8_file) != loaded.step) {
    fail(ErrorKind::data,
         "{}: of step {}, but model.safetensors is of step {}: saving was interrupted. Hint: the folders in "
         "{} "
         "are whole, and quaver train resumes from them",
         fp8_file, step_of(fp8, fp8_file), loaded.step, checkpoints_path(run));
  }
  loaded.model = std::make_unique<LanguageModel>(
      make_backend(config.backend, config.threads, config.products), config.model, config.train.seed);
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
