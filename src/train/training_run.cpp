#include "train/training_run.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <vector>

#include "base/files.h"
#include "quaver/backend.h"
#include "train/flops.h"
#include "train/run_folder.h"
#include "train/schedule.h"

namespace quaver {
namespace {

using Clock = std::chrono::steady_clock;

/// The largest resident set of this process. getrusage would count what the parent held before it started
/// this program.
std::int64_t process_peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;
  }
  return 0;
}

/// The losses of the last kFinalSteps steps.
class FinalLoss {
 public:
  void add(const LossSum& loss) {
    if (losses_.size() == kFinalSteps) losses_.erase(losses_.begin());
    losses_.push_back(loss);
  }
  LossSum sum() const {
    LossSum total;
    for (const LossSum& loss : losses_) total += loss;
    return total;
  }

 private:
  std::vector<LossSum> losses_;
};

class Run {
 public:
  Run(const RunConfig& config, TrainingObserver& observer)
      : Run(config, observer, make_backend(config.backend, config.threads),
            load_token_data(config.data, config.model.context, config.model.vocab)) {}

  TrainingResult execute() {
    if (config_.train.init != "random") load_weights(config_.train.init, config_, trainer_.model());
    create_run_folder(config_);
    AppendFile metrics(metrics_path(config_.run.dir));
    observer_.started({trainer_.backend().describe(), parameter_count(config_.model), source_.tokens(),
                       validation_.tokens(),
                       training_flops_per_token(trainer_.model(), config_.model.context),
                       trainer_.measured()});
    TrainingResult result;
    for (std::int64_t step = 1; step <= config_.train.steps && !result.stopped; ++step) {
      StepReport report = take_step(step);
      result.stopped = step < config_.train.steps && observer_.stop_requested();
      const bool last = step == config_.train.steps || result.stopped;
      if (last || is_due(config_.train.save_every, step)) save_model(config_, trainer_.model(), step);
      if (last || is_due(config_.train.eval_every, step)) report.validation = trainer_.evaluate(validation_);
      metrics.append(to_json_line(report));
      observer_.stepped(report);
      if (last) result.validation = *report.validation;
    }
    summarise(result);
    return result;
  }

 private:
  Run(const RunConfig& config, TrainingObserver& observer, std::shared_ptr<Backend> backend,
      const TokenData& data)
      : observer_(observer),
        trainer_(std::move(backend), config),
        config_(trainer_.config()),
        source_(data.train, data.rules, config.model.context, config.train.batch, config.train.seed),
        validation_(data.validation, data.rules, config.model.context, config.train.batch) {}

  static bool is_due(std::int64_t every, std::int64_t step) { return every > 0 && step % every == 0; }

  StepReport take_step(std::int64_t step) {
    const auto begin = Clock::now();
    std::vector<HostBatch> batches;
    for (std::int64_t i = 0; i < config_.train.accumulation; ++i) {
      batches.push_back(source_.at((step - 1) * config_.train.accumulation + i));
    }
    const float lr = learning_rate(config_.train, step);
    const StepResult result =
        trainer_.step(lr, batches, [&](LanguageModel& model) { observer_.gradients_ready(step, model); });
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    seconds_ += seconds;
    tokens_ += result.loss.tokens;
    final_loss_.add(result.loss);
    return {step, result.loss, lr, result.gradient_norm, seconds, result.casts, std::nullopt};
  }

  void summarise(TrainingResult& result) {
    result.steps = trainer_.steps();
    result.train = final_loss_.sum();
    result.tokens_per_second = static_cast<double>(tokens_) / seconds_;
    result.fp8 = fp8_coverage(trainer_.model());
    result.arena = trainer_.backend().memory_use();
    result.process_peak = process_peak_bytes();
  }

  TrainingObserver& observer_;
  Trainer trainer_;
  const RunConfig& config_;
  BatchSource source_;
  ValidationBatches validation_;
  FinalLoss final_loss_;
  double seconds_ = 0;
  std::int64_t tokens_ = 0;
};

}  // namespace

TrainingResult run_training(const RunConfig& config, TrainingObserver& observer) {
  return Run(config, observer).execute();
}

}  // namespace quaver
