/// A model in training: its weights, optimizer and precision, and what one optimizer step does to them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "quaver/language_model.h"
#include "train/fp8_auto.h"
#include "train/fp8_report.h"
#include "train/loss.h"
#include "train/optimizer.h"
#include "train/run_config.h"
#include "train/scale_snapshot.h"
#include "train/slot_list.h"
#include "train/step_casts.h"

namespace quaver {

struct StepResult {
  LossSum loss;
  float gradient_norm = 0;  ///< before clipping
  CastCounts casts;         ///< of this step
  std::string skipped;      ///< why nothing was updated; empty: it was
};

/// What somebody does in the middle of a step; either may be absent.
struct DuringStep {
  /// Between the last backward and the update.
  std::function<void(LanguageModel&)> gradients_ready = {};
  /// While a device has all of the step to do, and the host would wait.
  std::function<void()> handed_out = {};
};

/// Of [train] and [optimizer].
AdamW::Options optimizer_options(const RunConfig& config);

class Trainer {
 public:
  /// A fresh model, initialised from config.train.seed. Throws Error(usage) for a model that cannot hold byte
  /// tokens.
  Trainer(std::shared_ptr<Backend> backend, const RunConfig& config);

  /// One optimizer step over micro-batches whose targets all weigh the same. When a loss, the gradient norm or a number that was cast to FP8
  /// is not finite, weights, moments, scales and histories stay as they were, bit for bit; then train.nonfinite
  /// decides: "stop" throws Error(non_finite), "skip" returns why.
  StepResult step(float lr, std::span<const HostBatch> micro_batches, const DuringStep& during = {});

  /// The validation loss; leaves no trace in the FP8 state.
  LossSum evaluate(const ValidationBatches& batches);

  /// The configuration with fp8.auto resolved: the products that it took out of FP8 are overrides.
  const RunConfig& config() const { return config_; }
  /// What fp8.auto measured; empty without it.
  const Fp8AutoReport& measured() const { return measured_; }
  LanguageModel& model() { return model_; }
  AdamW& optimizer() { return optimizer_; }
  Backend& backend() { return model_.backend(); }
  /// Optimizer steps taken.
  std::int64_t steps() const { return optimizer_.steps(); }

 private:
  /// A configuration without fp8.auto, and what that measured to resolve it.
  struct Resolved {
    RunConfig config;
    Fp8AutoReport measured;
  };
  static Resolved resolve_fp8_auto(const std::shared_ptr<Backend>& backend, RunConfig config);
  Trainer(const std::shared_ptr<Backend>& backend, Resolved resolved);

  /// Forward and backward of each; their losses on the device, for which nothing waits.
  std::vector<Tensor> accumulate(std::span<const HostBatch> micro_batches, std::int64_t target_tokens);
  [[noreturn]] void fail_non_finite(const std::string& what) const;

  RunConfig config_;
  LanguageModel model_;
  Context context_;
  std::optional<Recipe> recipe_;
  AdamW optimizer_;
  SlotList slots_;
  ScaleSnapshot scales_;
  StepCasts casts_;
  Fp8AutoReport measured_;
};

}  // namespace quaver
