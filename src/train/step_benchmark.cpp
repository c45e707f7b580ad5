#include "train/step_benchmark.h"

#include <vector>

#include "base/busy_timer.h"
#include "quaver/backend.h"
#include "train/flops.h"
#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace {

/// The run with steps of one micro-batch: fp8.auto, too, chooses for those.
RunConfig with_precision(RunConfig config, Precision precision) {
  config.precision = precision;
  config.train.accumulation = 1;
  return config;
}

double time_step(Trainer& trainer, const HostBatch& batch) {
  const BusyTimer timer(timed_threads(trainer.backend(), trainer.config()));
  trainer.step(1e-4f, std::span(&batch, 1));
  return timer.seconds();
}

StepSpeed speed_of(const std::vector<double>& seconds, const StepBenchmark& benchmark) {
  StepSpeed speed;
  speed.seconds = median(seconds);
  speed.tokens_per_second = static_cast<double>(benchmark.micro_batch * benchmark.length) / speed.seconds;
  if (benchmark.bf16_peak > 0)
    speed.mfu = speed.tokens_per_second * benchmark.flops_per_token / benchmark.bf16_peak;
  return speed;
}

}  // namespace

int timed_threads(const Backend& backend, const RunConfig& config) {
  return backend.device() == Device::host ? config.threads : 0;
}

StepBenchmark benchmark_steps(const RunConfig& config, std::int64_t steps, const PeakMeter& measure_peak,
                              const std::function<void(std::int64_t)>& progress) {
  const auto backend = make_backend(config.backend, config.threads, config.products);
  Trainer fp8(backend, with_precision(config, Precision::fp8)),
      bf16(backend, with_precision(config, Precision::bf16));
  std::vector<double> fp8_seconds, bf16_seconds, ratios, peaks;
  // Memory is touched for the first time, and kernels are chosen; then the device records what it repeats.
  constexpr int kMostWarmUps = 6;
  for (std::int64_t pair = 0; pair < kMostWarmUps; ++pair) {
    const std::int64_t direct = backend->repeat_use().direct;
    const HostBatch batch = synthetic_batch(config, static_cast<std::uint64_t>(pair));
    time_step(fp8, batch);
    time_step(bf16, batch);
    if (backend->repeat_use().direct == direct) break;
  }
  progress(0);
  for (std::int64_t pair = 1; pair <= steps; ++pair) {
    const HostBatch batch = synthetic_batch(config, static_cast<std::uint64_t>(kMostWarmUps + pair));
    const double peak = measure_peak ? measure_peak() : 0;
    const auto time = [&](Trainer& trainer, std::vector<double>& seconds) {
      seconds.push_back(time_step(trainer, batch));
    };
    // In turn the first: what runs after the measurement of the peak meets other caches, and a warmer chip.
    if (pair % 2 == 0) time(bf16, bf16_seconds);
    time(fp8, fp8_seconds);
    if (pair % 2 != 0) time(bf16, bf16_seconds);
    progress(pair);
    ratios.push_back(bf16_seconds.back() / fp8_seconds.back());
    peaks.push_back(peak);
  }
  StepBenchmark result;
  result.backend = backend->describe();
  result.micro_batch = config.train.batch;
  result.length = config.model.context;
  result.steps = steps;
  result.flops_per_token = training_flops_per_token(fp8.model(), config.model.context);
  result.bf16_peak = median(peaks);
  result.fp8 = speed_of(fp8_seconds, result);
  result.bf16 = speed_of(bf16_seconds, result);
  result.ratio = median(ratios);
  result.measured = fp8.measured();
  result.repeats = backend->repeat_use();
  result.arena = backend->memory_use();
  return result;
}

}  // namespace quaver
