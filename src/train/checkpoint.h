/// A checkpoint: everything from which a run goes on with the same bits.
///
/// Its folder holds config.toml, model.safetensors and fp8_state.safetensors as the run's own folder does,
/// optimizer.safetensors, progress.json, and the manifest of formats/checkpoint_store.h. The order of the data and
/// the schedule are functions of the configuration and the step, and nothing else is random.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/checkpoint_store.h"
#include "formats/safetensors.h"
#include "train/run_config.h"
#include "train/trainer.h"

namespace quaver {

/// Steps whose mean is the final training loss.
constexpr std::size_t kFinalSteps = 10;

/// What the steps so far leave behind beside the states of model and optimizer.
struct RunProgress {
  std::int64_t step = 0;              ///< steps, skipped ones included
  std::int64_t skipped = 0;           ///< of these, steps that updated nothing (train.nonfinite = "skip")
  std::int64_t skipped_in_a_row = 0;  ///< of these, the newest
  std::int64_t tokens = 0;            ///< target tokens of all steps
  double seconds = 0;                 ///< of all steps
  std::vector<LossSum> last_losses;   ///< of the last kFinalSteps steps that were not skipped, oldest first
  std::uint32_t data_fingerprint = 0;

  void add(const StepResult& result, double step_seconds);
  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};

/// A copy of a run's state in host memory, which the run may leave behind.
class Snapshot {
 public:
  Snapshot(Trainer& trainer, const RunProgress& progress);

  std::int64_t step() const { return step_; }
  std::uint64_t bytes() const;
  /// Views of this snapshot.
  std::vector<CheckpointFile> files() const;

 private:
  struct File {
    std::string name, head;  ///< the bytes before those of the arrays
    std::vector<NamedArray> arrays;
  };
  void add(std::string name, std::vector<NamedArray> arrays,
           const std::map<std::string, std::string>& metadata);

  std::int64_t step_;
  std::vector<File> files_;
};

/// Puts the state of a verified checkpoint's folder into a trainer of the same configuration. Throws Error(data)
/// when they do not fit each other.
RunProgress restore_checkpoint(const std::string& folder, Trainer& trainer);

}  // namespace quaver
