#include "train/fp8_auto_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "train/fp8_policy.h"
#include "train/loss.h"
#include "train/run_precision.h"
#include "train/synthetic_batch.h"

namespace quaver {
namespace {

/// Runs before the first measurement at most; fewer once the device repeats all that it is given.
constexpr int kMostWarmUps = 6;
/// Measured steps: three always, more while they take less than this.
constexpr int kFewestRounds = 3, kMostRounds = 15;
constexpr double kEnoughSeconds = 0.3;
/// What must be gained before FP8 is worth it: measurements differ by about so much.
constexpr double kClearlyFaster = 0.99;

/// As an optimizer step leaves them: new weights, no gradients.
class EndStep : public ModuleVisitor {
 public:
  void parameter(const std::string& /*name*/, Parameter& parameter) override {
    ++parameter.version;
    parameter.clear_gradient();
  }
};

class StepTimer {
 public:
  StepTimer(const std::shared_ptr<Backend>& backend, const RunConfig& config)
      : config_(config),
        model_(backend, config.model, config.train.seed),
        context_(*backend, activation_dtype(config.precision)),
        recipe_(run_recipe(config)),
        batch_(upload_batch(*backend, synthetic_batch(config, 0))),
        losses_(backend->allocate(DType::f32, batch_.targets.shape())) {}

  /// The shortest step of several.
  double seconds(const Fp8Config& fp8) {
    apply_fp8_policy(model_, fp8, config_.model.layers);
    Backend& backend = model_.backend();
    for (int run = 0; run < kMostWarmUps; ++run) {
      const std::int64_t direct = backend.repeat_use().direct;
      step();
      if (backend.repeat_use().direct == direct) break;
    }
    double shortest = std::numeric_limits<double>::infinity(), spent = 0;
    for (int round = 0; round < kFewestRounds || (round < kMostRounds && spent < kEnoughSeconds); ++round) {
      const double taken = step();
      spent += taken;
      shortest = std::min(shortest, taken);
    }
    return shortest;
  }

 private:
  /// Two micro-batches stand for all: the first casts weights, all others are alike.
  double step() {
    const double first = micro_batch();
    const auto later = static_cast<double>(config_.train.accumulation - 1);
    const double all = later > 0 ? first + later * micro_batch() : first;
    EndStep end;
    model_.visit("", end);
    return all;
  }

  double micro_batch() {
    const auto begin = std::chrono::steady_clock::now();
    model_.backend().run_repeated(
        [&] { accumulate_gradients(model_, context_, recipe_, batch_, kGradientScale, losses_); });
    download(model_.backend(), losses_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  static constexpr float kGradientScale = 1e-3f;
  const RunConfig& config_;
  LanguageModel model_;
  Context context_;
  std::optional<Recipe> recipe_;
  DeviceBatch batch_;
  Tensor losses_;
};

Fp8Config with_overrides(Fp8Config fp8, const std::vector<Fp8Override>& overrides) {
  fp8.overrides.insert(fp8.overrides.begin(), overrides.begin(), overrides.end());
  return fp8;
}

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
  StepTimer timer(backend, config);
  StepTimes times;
  times.bf16 = timer.seconds(with_overrides(config.fp8, bf16_everywhere("")));
  times.fp8 = timer.seconds(config.fp8);
  times.mixed = found.empty() ? times.fp8 : timer.seconds(with_overrides(config.fp8, found));
  return times;
}

std::string describe(const StepTimes& times) {
  static constexpr const char* kNames[] = {"FP8", "the products above", "BF16"};
  return fmt::format(
      "fp8.auto | a step's passes | FP8 {:.3g} ms, the products above {:.3g} ms, BF16 {:.3g} ms | chosen: {}",
      times.fp8 * 1e3, times.mixed * 1e3, times.bf16 * 1e3,
      kNames[static_cast<std::size_t>(fastest_step(times))]);
}

}  // namespace quaver
