#include "generate/generation_benchmark.h"

#include <vector>

#include "base/busy_timer.h"
#include "base/check.h"
#include "quaver/backend.h"
#include "train/flops.h"
#include "train/fp8_policy.h"
#include "train/run_precision.h"
#include "train/step_benchmark.h"

namespace quaver {
namespace {

/// A model in one precision and its cache.
class Generation {
 public:
  Generation(std::shared_ptr<Backend> backend, const RunConfig& config, Precision precision,
             std::int64_t capacity)
      : model_(std::move(backend), config.model, config.train.seed),
        context_(model_.backend(), activation_dtype(precision)),
        cache_(model_.make_cache(capacity, context_.high_precision())),
        threads_(timed_threads(model_.backend(), config)) {
    if (precision == Precision::fp8) recipe_ = config.fp8.make_recipe();
    apply_fp8_policy(model_, config.fp8, config.model.layers);
  }

  LanguageModel& model() { return model_; }

  /// Seconds to append `count` tokens and to read the logits of the last.
  double append(std::int64_t count) {
    const std::vector<std::int32_t> tokens(static_cast<std::size_t>(count), 1);
    Backend& backend = model_.backend();
    const NoGradients evaluation(context_);
    const BusyTimer timer(threads_);
    const Autocast scope(context_, recipe_.has_value(), recipe_.value_or(DelayedScaling{}));
    const CacheExtension extension{&cache_, count};
    download(backend, model_.extend(context_, upload(backend, tokens, {count}), {&extension, 1}));
    return timer.seconds();
  }

 private:
  LanguageModel model_;
  Context context_;
  std::optional<Recipe> recipe_;
  KvCache cache_;
  int threads_;
};

GenerationSpeed speed_of(const std::vector<double>& seconds, double weight_bytes, double bandwidth) {
  GenerationSpeed speed;
  speed.seconds = median(seconds);
  speed.tokens_per_second = 1 / speed.seconds;
  speed.weight_bytes = weight_bytes;
  if (bandwidth > 0) speed.bandwidth_share = weight_bytes / bandwidth / speed.seconds;
  return speed;
}

}  // namespace

GenerationBenchmark benchmark_generation(const RunConfig& config, std::int64_t cached, std::int64_t tokens,
                                         const BandwidthMeter& measure_bandwidth) {
  const std::int64_t capacity = cached + tokens + 1;
  require(capacity <= config.model.context,
          "bench generate: {} cached and {} generated tokens exceed model.context = {}", cached, tokens + 1,
          config.model.context);
  const auto backend = make_backend(config.backend, config.threads, config.products);
  Generation fp8(backend, config, Precision::fp8, capacity), bf16(backend, config, Precision::bf16, capacity);
  fp8.append(cached);
  bf16.append(cached);
  std::vector<double> fp8_seconds, bf16_seconds, ratios, bandwidths;
  for (std::int64_t i = 0; i <= tokens; ++i) {
    const double bandwidth = measure_bandwidth ? measure_bandwidth() : 0;
    const double a = fp8.append(1), b = bf16.append(1);
    if (i == 0) continue;  // memory is touched for the first time
    bandwidths.push_back(bandwidth);
    fp8_seconds.push_back(a);
    bf16_seconds.push_back(b);
    ratios.push_back(b / a);
  }
  GenerationBenchmark result;
  result.backend = backend->describe();
  result.cached = cached;
  result.tokens = tokens;
  result.read_bandwidth = median(bandwidths);
  const double weights = linear_weights(fp8.model());
  result.fp8 = speed_of(fp8_seconds, weights, result.read_bandwidth);
  result.bf16 = speed_of(bf16_seconds, 2 * weights, result.read_bandwidth);
  result.ratio = median(ratios);
  return result;
}

}  // namespace quaver
