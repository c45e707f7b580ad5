/// What a training run says on stderr: a live line on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "train/training_run.h"

namespace quaver::cli {

/// "step 120/2000 6.0% | loss 3.2816 | ... | eta 9m12s". `flops_per_second` <= 0 leaves out MFU, a `peak` of
/// 0 likewise.
std::string progress_line(const StepReport& report, std::int64_t steps, double flops_per_token, double peak,
                          double eta_seconds, bool fp8);

class Progress : public TrainingObserver {
 public:
  /// `peak`: floating-point operations per second that MFU refers to; 0: unknown. `strict_fp8`: a step in which a
  /// product that should run in FP8 did not is an error, before its update.
  Progress(const RunConfig& config, double peak, bool strict_fp8 = false);
  ~Progress() override;  ///< ends the live line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void started(const RunStart& start) override;
  void gradients_ready(std::int64_t step, LanguageModel& model) override;
  void stepped(const StepReport& report) override;
  void saved(const SaveReport& report) override;
  /// True once SIGINT or SIGTERM arrived (see catch_signals).
  bool stop_requested() override;
  /// True once after every SIGUSR1.
  bool save_requested() override;

 private:
  void show_origin(const RunStart& start);
  void show(const std::string& line, bool keep);

  const RunConfig& config_;
  double peak_, flops_per_token_ = 0;
  double seconds_per_step_ = 0;  // running mean, for the time left
  bool terminal_, strict_fp8_;
  bool line_is_open_ = false;
};

/// From now on the first SIGINT or SIGTERM asks for an end; a second one ends the program at once. SIGUSR1 asks for a
/// save.
void catch_signals();

}  // namespace quaver::cli
