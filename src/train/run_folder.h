/// The folder of a training run: config.toml, metrics.jsonl, model.safetensors, fp8_state.safetensors,
/// checkpoints/, and a tokenizer.json or tokenizer.model unless tokens are bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quaver/language_model.h"
#include "train/fp8_state.h"
#include "train/run_config.h"

namespace quaver {

std::string config_path(const std::string& run);
std::string metrics_path(const std::string& run);
std::string model_path(const std::string& run);
std::string fp8_state_path(const std::string& run);
std::string optimizer_path(const std::string& checkpoint);
std::string checkpoints_path(const std::string& run);

bool holds_run(const std::string& run);

/// Makes config.run.dir and writes the resolved configuration and a copy of the tokenizer's file to it. Throws
/// Error(usage) when it already holds a run.
void create_run_folder(const RunConfig& config);

/// Prepares the folder of a run that goes on after `step`: metrics of later steps are removed, for they will be
/// written again, and the configuration is replaced.
void continue_run_folder(const RunConfig& config, std::int64_t step);

/// Writes the parameters and the FP8 state after `step` optimizer steps. Both files are complete on disk
/// before either replaces an earlier one; when writing fails, throws Error(failure) and the earlier ones are
/// untouched.
void save_model(const RunConfig& config, LanguageModel& model, std::int64_t step);

/// Makes the model of a checkpoint that of the run: the same files under both names (copies where the file
/// system has no hard links).
void publish_model(const std::string& checkpoint, const std::string& run);

/// A saved run or checkpoint, ready to compute with the bits it had when it was saved. Its config.data.tokenizer names the
/// folder, which holds the copy of the tokenizer.
struct LoadedRun {
  RunConfig config;
  std::unique_ptr<LanguageModel> model;
  std::int64_t step = 0;  ///< optimizer steps behind the weights
};
/// Throws Error(data) when the folder holds no complete run.
LoadedRun load_run(const std::string& run, std::span<const std::string> overrides = {});

/// Replaces the model's weights by those of a run, whose [model] must be equal but for context and init_std.
/// Throws Error(usage) naming the key that differs, and Error(data) when the folder holds no complete run.
void load_weights(const std::string& run, const RunConfig& config, LanguageModel& model);

/// The FP8 state alone.
std::vector<LinearState> load_fp8_state(const std::string& run);

}  // namespace quaver
