/// A whole training run: data, steps, evaluations, metrics and saves, as its configuration says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quaver/backend.h"
#include "train/checkpointer.h"
#include "train/metrics.h"
#include "train/run_config.h"
#include "train/run_origin.h"
#include "train/trainer.h"

namespace quaver {

/// What is known before the first step.
struct RunStart {
  std::string backend;  ///< Backend::describe()
  std::int64_t parameters = 0, train_tokens = 0, validation_tokens = 0;
  double flops_per_token = 0;
  Fp8AutoReport measured;                  ///< by fp8.auto
  std::string checkpoint;                  ///< where the run goes on; empty: it begins
  std::int64_t step = 0;                   ///< steps taken before
  std::vector<DamagedCheckpoint> damaged;  ///< checkpoints that did not verify and were passed over
};

/// Hears of a run's progress. The run itself prints nothing.
class TrainingObserver {
 public:
  virtual ~TrainingObserver() = default;
  virtual void started(const RunStart& /*start*/) {}
  /// Between the last backward of a step and its update.
  virtual void gradients_ready(std::int64_t /*step*/, LanguageModel& /*model*/) {}
  virtual void stepped(const StepReport& /*report*/) {}
  /// A save is over; it failed when report.error is not empty, and training goes on.
  virtual void saved(const SaveReport& /*report*/) {}
  /// Asked after every step: whether to save and end now.
  virtual bool stop_requested() { return false; }
  /// Asked after every step: whether to save and go on.
  virtual bool save_requested() { return false; }
};

struct TrainingResult {
  std::int64_t steps = 0;
  std::int64_t skipped = 0;           ///< of these, steps that updated nothing
  bool stopped = false;               ///< on request, before the last step
  LossSum train;                      ///< of the last kFinalSteps steps
  std::optional<LossSum> validation;  ///< after the last step; not of a run that was stopped
  double tokens_per_second = 0;
  Fp8Coverage fp8;
  MemoryUse arena;
  std::int64_t process_peak = 0;  ///< bytes; 0 where the system does not say
};

/// Runs the configuration, writing to config.run.dir, from where config.resume says. Throws Error(usage) for a
/// configuration that cannot run and Error(data) for missing text before anything is written; Error(non_finite)
/// leaves the last checkpoint in place; Error(failure) when the last save failed. Also saves when the file "save"
/// appears in run.dir, which it then removes.
TrainingResult run_training(const RunConfig& config, TrainingObserver& observer);

}  // namespace quaver
