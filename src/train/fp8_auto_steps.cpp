#include "train/fp8_auto_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <span>

#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace {

/// Runs before the first measurement at most; fewer once the device repeats all that it is given.
constexpr int kMostWarmUps = 6;
/// Measured steps: three always, more while they take less than this.
constexpr int kFewestRounds = 3, kMostRounds = 15;
constexpr double kEnoughSeconds = 0.3;
/// What must be gained before FP8 is worth it: measurements differ by about so much.
constexpr double kClearlyFaster = 0.99;

/// Times the steps of a run that keeps what `overrides` match out of FP8.
class StepTimer {
 public:
  StepTimer(const std::shared_ptr<Backend>& backend, RunConfig config,
            const std::vector<Fp8Override>& overrides)
      : backend_(*backend),
        config_(with_overrides(std::move(config), overrides)),
        trainer_(backend, config_) {
    // Two micro-batches stand for all: the first reads new weights, all others are alike.
    const std::int64_t count = std::min<std::int64_t>(2, config_.train.accumulation);
    for (std::int64_t i = 0; i < count; ++i)
      batches_.push_back(synthetic_batch(config_, static_cast<std::uint64_t>(i)));
  }

  double seconds() {
    const double first = shortest(1);
    if (batches_.size() == 1) return first;
    return first + static_cast<double>(config_.train.accumulation - 1) * std::max(0.0, shortest(2) - first);
  }

 private:
  static RunConfig with_overrides(RunConfig config, const std::vector<Fp8Override>& overrides) {
    auto& all = config.fp8.overrides;
    all.insert(all.begin(), overrides.begin(), overrides.end());
    return config;
  }

  /// The shortest step of several of so many micro-batches.
  double shortest(std::size_t micro_batches) {
    for (int run = 0; run < kMostWarmUps; ++run) {
      const std::int64_t direct = backend_.repeat_use().direct;
      step(micro_batches);
      if (backend_.repeat_use().direct == direct) break;
    }
    double shortest = std::numeric_limits<double>::infinity(), spent = 0;
    for (int round = 0; round < kFewestRounds || (round < kMostRounds && spent < kEnoughSeconds); ++round) {
      const double taken = step(micro_batches);
      spent += taken;
      shortest = std::min(shortest, taken);
    }
    return shortest;
  }

  double step(std::size_t micro_batches) {
    const auto begin = std::chrono::steady_clock::now();
    trainer_.step(kRate, std::span(batches_).first(micro_batches));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  static constexpr float kRate = 1e-6f;  ///< random tokens teach nothing: the losses stay finite
  Backend& backend_;
  RunConfig config_;
  Trainer trainer_;
  std::vector<HostBatch> batches_;
};

}  // namespace

StepChoice fastest_step(const StepTimes& times) {
  const StepChoice in_fp8 = times.mixed < times.fp8 ? StepChoice::mixed : StepChoice::fp8;
  return std::min(times.mixed, times.fp8) < kClearlyFaster * times.bf16 ? in_fp8 : StepChoice::bf16;
}

std::vector<Fp8Override> bf16_everywhere(const std::string& why) {
  return {{.match = "*", .why = why}};
}

StepTimes time_steps(const std::shared_ptr<Backend>& backend, const RunConfig& config,
                     const std::vector<Fp8Override>& found) {
  const auto seconds = [&](const std::vector<Fp8Override>& overrides) {
    return StepTimer(backend, config, overrides).seconds();
  };
  StepTimes times;
  times.bf16 = seconds(bf16_everywhere(""));
  times.fp8 = seconds({});
  times.mixed = found.empty() ? times.fp8 : seconds(found);
  return times;
}

std::string describe(const StepTimes& times) {
  static constexpr const char* kNames[] = {"FP8", "the products above", "BF16"};
  return fmt::format(
      "fp8.auto | a whole step | FP8 {:.3g} ms, the products above {:.3g} ms, BF16 {:.3g} ms | chosen: {}",
      times.fp8 * 1e3, times.mixed * 1e3, times.bf16 * 1e3,
      kNames[static_cast<std::size_t>(fastest_step(times))]);
}

}  // namespace quaver
