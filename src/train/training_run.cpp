#include "train/training_run.h"

#include <array>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/files.h"
#include "observe/event_file.h"
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

constexpr const char* kSaveRequest = "save";

/// Of the data in this very order: a run that goes on must meet the same.
std::uint32_t fingerprint_of(const TokenData& data) {
  const std::array<std::uint32_t, 2> splits = {data.train.fingerprint(), data.validation.fingerprint()};
  return crc32c(std::as_bytes(std::span(splits)));
}

class Run {
 public:
  Run(const RunConfig& config, TrainingObserver& observer, FileSystem& files)
      : Run(lock(config.run.dir), config, observer, files) {}

  TrainingResult execute() {
    begin();
    AppendFile metrics(metrics_path(config_.run.dir));
    std::optional<EventFile> events;
    if (config_.train.tensorboard) events.emplace(config_.run.dir, progress_.step + 1);
    Checkpointer checkpointer(files_, config_.run.dir, config_.train.keep_checkpoints,
                              [&] { metrics.sync(); });
    TrainingResult result;
    while (progress_.step < config_.train.steps && !result.stopped) {
      tell(checkpointer.poll());  // not after a save began: the last report is finish()'s, which throws it
      StepReport report = take_step();
      result.stopped = report.step < config_.train.steps && observer_.stop_requested();
      const bool last = report.step == config_.train.steps;
      if (last || is_due(config_.train.eval_every, report.step)) {
        report.validation = trainer_.evaluate(validation_);
      }
      metrics.append(to_json_line(report));
      if (events) events->append(report.step, scalars_of(report));
      observer_.stepped(report);
      limit_skips(report);
      if (last || result.stopped || save_is_due(report.step)) {
        tell(checkpointer.begin(trainer_, progress_));
      }
      result.validation = report.validation;
    }
    finish(checkpointer, result);
    return result;
  }

 private:
  using Lock = std::optional<FolderLock>;

  static Lock lock(const std::string& folder) {
    return std::filesystem::exists(folder) ? Lock(folder) : Lock();
  }

  Run(Lock lock, const RunConfig& config, TrainingObserver& observer, FileSystem& files)
      : Run(std::move(lock), find_origin(files, config), observer, files) {}

  Run(Lock lock, const RunOrigin& origin, TrainingObserver& observer, FileSystem& files)
      : Run(std::move(lock), origin, observer, files,
            make_backend(origin.config.backend, origin.config.threads, origin.config.products),
            load_token_data(origin.config.data, origin.config.model.context, origin.config.model.vocab)) {}

  Run(Lock lock, const RunOrigin& origin, TrainingObserver& observer, FileSystem& files,
      std::shared_ptr<Backend> backend, const TokenData& data)
      : lock_(std::move(lock)),
        origin_(origin),
        observer_(observer),
        files_(files),
        trainer_(std::move(backend), origin_.config),
        config_(trainer_.config()),
        source_(data.train, data.rules, config_.model.context, config_.train.batch, config_.train.seed),
        validation_(data.validation, data.rules, config_.model.context, config_.train.batch) {
    progress_.data_fingerprint = fingerprint_of(data);
  }

  static bool is_due(std::int64_t every, std::int64_t step) { return every > 0 && step % every == 0; }

  std::string request_path() const { return config_.run.dir + "/" + kSaveRequest; }

  void begin() {
    if (!origin_.checkpoint.empty()) {
      restore();
    } else if (config_.train.init != "random") {
      load_weights(config_.train.init, config_, trainer_.model());
    }
    if (origin_.is_new) {
      create_run_folder(config_);
      if (!lock_) lock_.emplace(config_.run.dir);
    } else {
      continue_run_folder(config_, progress_.step);
    }
    observer_.started({trainer_.backend().describe(), parameter_count(config_.model), source_.tokens(),
                       validation_.tokens(),
                       training_flops_per_token(trainer_.model(), config_.model.context), trainer_.measured(),
                       origin_.checkpoint, progress_.step, origin_.damaged});
  }

  void restore() {
    const std::uint32_t data = progress_.data_fingerprint;
    progress_ = restore_checkpoint(origin_.checkpoint, trainer_);
    require(progress_.data_fingerprint == data,
            "data.path: {} does not hold the tokens that the run in {} was trained on. Hint: give it the "
            "same data; "
            "or train.init = \"{}\" with another run.dir begins from its weights",
            config_.data.path, origin_.checkpoint, origin_.checkpoint);
    if (!origin_.is_new) publish_model(origin_.checkpoint, config_.run.dir);
  }

  std::vector<HostBatch> batches_of(std::int64_t step) const {
    std::vector<HostBatch> batches;
    for (std::int64_t i = 0; i < config_.train.accumulation; ++i) {
      batches.push_back(source_.at((step - 1) * config_.train.accumulation + i));
    }
    return batches;
  }

  StepReport take_step() {
    const auto begin = Clock::now();
    const std::int64_t step = progress_.step + 1;
    const std::vector<HostBatch> batches =
        next_batches_.empty() ? batches_of(step) : std::exchange(next_batches_, {});
    const float lr = learning_rate(config_.train, step);
    const StepResult result = trainer_.step(
        lr, batches,
        {.gradients_ready = [&](LanguageModel& model) { observer_.gradients_ready(step, model); },
         .handed_out =
             [&] {
               if (step < config_.train.steps) next_batches_ = batches_of(step + 1);
             }});
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    progress_.add(result, seconds);
    return {step, result.loss, lr, result.gradient_norm, seconds, result.casts, std::nullopt, result.skipped};
  }

  void limit_skips(const StepReport& report) const {
    if (progress_.skipped_in_a_row < config_.train.max_skips) return;
    fail(ErrorKind::non_finite,
         "step {}: {}: not finite, as in all of the last {} steps, which is train.max_skips. Hint: a lower "
         "train.lr, a longer train.warmup_steps or a smaller train.clip; the last checkpoint is from before "
         "or "
         "among them, with the weights of the last step that was taken",
         report.step, report.skipped, progress_.skipped_in_a_row);
  }

  bool save_is_due(std::int64_t step) {
    const bool by_file = !requested_at_ && files_.exists(request_path());
    if (by_file) requested_at_ = step;
    const bool by_observer = observer_.save_requested();
    return is_due(config_.train.save_every, step) || by_observer || by_file;
  }

  void tell(const std::optional<SaveReport>& report) {
    if (!report) return;
    if (requested_at_ && report->step >= *requested_at_) answer_request(report->error.empty());
    observer_.saved(*report);
  }

  /// A request stands until a checkpoint that was begun after it is durable.
  void answer_request(bool is_saved) {
    requested_at_.reset();
    if (is_saved && files_.exists(request_path())) files_.remove_file(request_path());
  }

  void finish(Checkpointer& checkpointer, TrainingResult& result) {
    const std::optional<SaveReport> save = checkpointer.wait();
    tell(save);
    if (save && !save->error.empty()) fail(ErrorKind::failure, "{}", save->error);
    if (!result.stopped && !result.validation) result.validation = trainer_.evaluate(validation_);
    result.steps = progress_.step;
    result.skipped = progress_.skipped;
    for (const LossSum& loss : progress_.last_losses) result.train += loss;
    result.tokens_per_second = static_cast<double>(progress_.tokens) / progress_.seconds;
    result.fp8 = fp8_coverage(trainer_.model());
    result.arena = trainer_.backend().memory_use();
    result.process_peak = process_peak_bytes();
  }

  Lock lock_;  // none of a folder that does not exist yet
  RunOrigin origin_;
  TrainingObserver& observer_;
  FileSystem& files_;
  Trainer trainer_;
  const RunConfig& config_;
  BatchSource source_;
  ValidationBatches validation_;
  RunProgress progress_;
  std::vector<HostBatch> next_batches_;       // of the step after the last; made while a device is at work
  std::optional<std::int64_t> requested_at_;  // the step in which the file "save" was seen
};

}  // namespace

TrainingResult run_training(const RunConfig& config, TrainingObserver& observer) {
  PosixFileSystem files;
  return Run(config, observer, files).execute();
}

}  // namespace quaver
