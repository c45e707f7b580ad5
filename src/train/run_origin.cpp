#include "train/run_origin.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>

#include "base/check.h"
#include "train/run_config_schema.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

constexpr std::array<std::string_view, 19> kMayChange = {"backend",
                                                         "threads",
                                                         "products",
                                                         "resume",
                                                         "run.dir",
                                                         "data.path",
                                                         "data.tokenizer",
                                                         "train.steps",
                                                         "train.log_every",
                                                         "train.eval_every",
                                                         "train.save_every",
                                                         "train.init",
                                                         "train.tensorboard",
                                                         "train.eval_batches",
                                                         "train.keep_checkpoints",
                                                         "train.nonfinite",
                                                         "train.max_skips",
                                                         "model.recompute",
                                                         "fp8.histogram_every"};

/// fp8.auto chose when the run began; its choice is part of the run.
void adopt_choices(RunConfig& config, const RunConfig& stored) {
  if (!config.fp8.measured) return;
  config.fp8.measured = false;
  config.fp8.overrides = stored.fp8.overrides;
}

/// "train.lr = 0.001, not 0.01"
std::string describe_difference(const std::string& key, const RunConfig& stored, const RunConfig& config) {
  const ConfigField* field = find_config_field(key);
  return field ? fmt::format("{} = {}, not {}", key, field->toml(stored), field->toml(config)) : key;
}

void require_same_run(const RunConfig& stored, const RunConfig& config, const std::string& run) {
  std::vector<std::string> differences;
  for (const std::string& key : differing_keys(stored, config)) {
    if (!may_change_on_resume(key)) differences.push_back(describe_difference(key, stored, config));
  }
  if (stored.fp8.overrides != config.fp8.overrides) differences.emplace_back("other [[fp8.override]]");
  require(differences.empty(),
          "run.dir: the run in {} has {}. Hint: the same values resume it; another run.dir begins a new run, "
          "with "
          "train.init = \"{}\" from its weights",
          run, fmt::join(differences, "; "), run);
}

/// The step of "<run>/checkpoints/step-<n>", and of any other path the newest whole one in its checkpoints.
std::string verified_checkpoint(FileSystem& files, const std::string& path) {
  const std::filesystem::path folder = std::filesystem::absolute(path).lexically_normal();
  if (!std::filesystem::exists(folder / kManifestName)) {
    const CheckpointStore store(files, checkpoints_path(folder));
    const NewestCheckpoint newest = store.find_newest();
    require(newest.manifest.has_value(), "resume: {} is not a checkpoint, and holds no whole one", path);
    return store.path_of(newest.manifest->step);
  }
  verify_checkpoint(files, folder);
  return folder;
}

bool names_checkpoint(const std::string& resume) {
  return resume != kResumeAuto && resume != kResumeNone;
}

RunOrigin branch(FileSystem& files, const RunConfig& config) {
  require(!holds_run(config.run.dir),
          "run.dir: {} already holds a run, and resume = \"{}\" begins a new one. Hint: resume = \"auto\" "
          "goes on "
          "with it; or choose another run.dir",
          config.run.dir, config.resume);
  RunOrigin origin{config, true, verified_checkpoint(files, config.resume), {}};
  const RunConfig stored = load_run_config(config_path(origin.checkpoint));
  adopt_choices(origin.config, stored);
  require_same_run(stored, origin.config, config.resume);
  return origin;
}

RunOrigin go_on(FileSystem& files, const RunConfig& config) {
  const std::string& run = config.run.dir;
  CheckpointStore store(files, checkpoints_path(run));
  const bool has_checkpoints = !store.steps().empty();
  NewestCheckpoint newest = store.recover();
  if (has_checkpoints && !newest.manifest) {
    fail(ErrorKind::data, "{}: none of its checkpoints is whole: {}", run, newest.damaged.front().reason);
  }
  require(newest.manifest || !std::filesystem::exists(model_path(run)),
          "run.dir: {} already holds a model and no checkpoint to go on from. Hint: train.init = \"{}\" with "
          "another "
          "run.dir begins from its weights",
          run, run);
  RunOrigin origin{config, false, "", std::move(newest.damaged)};
  if (newest.manifest) origin.checkpoint = store.path_of(newest.manifest->step);
  const RunConfig stored = load_run_config(config_path(newest.manifest ? origin.checkpoint : run));
  if (!newest.manifest && names_checkpoint(stored.resume)) {  // it began there, and saved nothing yet
    origin.config.resume = stored.resume;
    origin.checkpoint = verified_checkpoint(files, stored.resume);
  }
  adopt_choices(origin.config, stored);
  require_same_run(stored, origin.config, run);
  require(!newest.manifest || newest.manifest->step <= config.train.steps,
          "train.steps: the run in {} is at step {}; expected at least that, found {}", run,
          newest.manifest->step, config.train.steps);
  return origin;
}

}  // namespace

bool may_change_on_resume(std::string_view key) {
  return std::find(kMayChange.begin(), kMayChange.end(), key) != kMayChange.end();
}

RunOrigin find_origin(FileSystem& files, const RunConfig& config) {
  if (names_checkpoint(config.resume)) return branch(files, config);
  if (!holds_run(config.run.dir)) return {config, true, "", {}};
  require(
      config.resume == kResumeAuto,
      "run.dir: {} already holds a run. Hint: resume = \"auto\" goes on with it; or choose another run.dir",
      config.run.dir);
  return go_on(files, config);
}

}  // namespace quaver
