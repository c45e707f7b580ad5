#include "train/step_profile.h"

#include <algorithm>
#include <map>

#include "base/busy_timer.h"
#include "base/check.h"
#include "train/flops.h"
#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace {

struct Samples {
  std::vector<double> seconds;
  OperationTotals last;
};

std::vector<OperationProfile> medians_of(const std::map<std::string, Samples>& samples) {
  std::vector<OperationProfile> operations;
  for (const auto& [name, sample] : samples) {
    OperationTotals totals = sample.last;  // calls, bytes and operations are those of any step
    totals.seconds = median(sample.seconds);
    operations.push_back({name, totals});
  }
  std::sort(operations.begin(), operations.end(),
            [](const auto& a, const auto& b) { return a.per_step.seconds > b.per_step.seconds; });
  return operations;
}

}  // namespace

StepProfile profile_steps(const RunConfig& config, std::int64_t steps,
                          const std::function<double()>& measure_peak,
                          const std::function<double()>& measure_copy) {
  const auto backend = std::make_shared<TimedBackend>(
      make_backend(config.backend, config.threads, config.products), config.threads);
  require(
      backend->device() == Device::host,
      "profile: backend \"{}\" works beside the host, which cannot time its operations; use its own profiler",
      backend->name());
  Trainer trainer(backend, config);
  std::map<std::string, Samples> samples;
  std::vector<double> seconds, peaks, copies;
  for (std::int64_t step = 0; step <= steps; ++step) {
    const HostBatch batch = synthetic_batch(config, static_cast<std::uint64_t>(step));
    peaks.push_back(measure_peak());
    copies.push_back(measure_copy());
    backend->take();
    const BusyTimer timer(config.threads);
    trainer.step(1e-4f, std::span(&batch, 1));
    seconds.push_back(timer.seconds());
    for (const auto& [name, totals] : backend->take()) {
      Samples& sample = samples[name];
      if (step == 0) continue;  // memory is touched for the first time
      sample.seconds.push_back(totals.seconds);
      sample.last = totals;
    }
  }
  std::erase_if(samples, [](const auto& entry) { return entry.second.seconds.empty(); });
  seconds.erase(seconds.begin());

  StepProfile profile;
  profile.backend = backend->describe();
  profile.micro_batch = config.train.batch;
  profile.length = config.model.context;
  profile.steps = steps;
  profile.flops_per_token = training_flops_per_token(trainer.model(), config.model.context);
  profile.seconds = median(seconds);
  profile.bf16_peak = median(peaks);
  profile.copy_bandwidth = median(copies);
  profile.operations = medians_of(samples);
  return profile;
}

}  // namespace quaver
