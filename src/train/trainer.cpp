#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quaver/backend.h"
#include "train/fp8_policy.h"
#include "train/run_precision.h"

namespace quaver {
namespace {

AdamW::Options optimizer_options(const TrainConfig& train) {
  return {train.beta1, train.beta2, train.epsilon, train.weight_decay, train.clip};
}

LossSum count_targets(std::span<const HostBatch> batches) {
  LossSum sum;
  for (const HostBatch& batch : batches) sum += {0, batch.target_count, batch.target_bytes};
  return sum;
}

}  // namespace

Trainer::Trainer(std::shared_ptr<Backend> backend, const RunConfig& config)
    : config_(config),
      model_(std::move(backend), config.model, config.train.seed),
      context_(model_.backend(), activation_dtype(config.precision)),
      recipe_(run_recipe(config)),
      optimizer_(model_.backend(), model_, optimizer_options(config.train)) {
  apply_fp8_policy(model_, config.fp8, config.model.layers);
  if (config.fp8.measured) resolve_fp8_auto();
}

void Trainer::resolve_fp8_auto() {
  config_.fp8.measured = false;
  if (!recipe_) return;
  const bool all_delayed =
      std::all_of(config_.fp8.overrides.begin(), config_.fp8.overrides.end(),
                  [](const auto& o) { return o.recipe == kBf16 || o.recipe == "delayed"; });
  require(is_delayed(*recipe_) && all_delayed,
          "fp8.auto: times delayed scaling alone; found fp8.recipe = \"{}\"{}. Hint: fp8.auto = false",
          config_.fp8.recipe, all_delayed ? "" : " and an [[fp8.override]] with another recipe");
  measured_ = measure_linears(backend(), model_, *recipe_, config_.train.batch * config_.model.context,
                              config_.train.accumulation);
  std::vector<std::string> names;
  for (const NamedLinear& linear : linears_of(model_)) names.push_back(linear.name);
  // Before the run file's own, which win.
  const std::vector<Fp8Override> found = overrides_of(measured_, names);
  config_.fp8.overrides.insert(config_.fp8.overrides.begin(), found.begin(), found.end());
  apply_fp8_policy(model_, config_.fp8, config_.model.layers);
}

StepResult Trainer::step(float lr, std::span<const HostBatch> micro_batches,
                         const GradientsReady& gradients_ready) {
  // Nothing is read on the host before the step's last micro-batch is under way.
  const Tensor before = gather_cast_counters(backend(), model_);
  StepResult result;
  result.loss = accumulate(micro_batches);
  if (gradients_ready) gradients_ready(model_);
  if (!std::isfinite(result.loss.nats)) fail_non_finite(result.loss.mean(), optimizer_.gradient_norm());
  result.gradient_norm = optimizer_.step(lr);
  if (!std::isfinite(result.gradient_norm)) fail_non_finite(result.loss.mean(), result.gradient_norm);
  result.casts = count_casts(backend(), model_) - cast_counts(backend(), before);
  return result;
}

LossSum Trainer::accumulate(std::span<const HostBatch> micro_batches) {
  LossSum sum = count_targets(micro_batches);
  require(sum.tokens > 0, "train: a step without target tokens");
  const float gradient_scale = static_cast<float>(1.0 / static_cast<double>(sum.tokens));
  std::vector<Tensor> losses;
  auto position = static_cast<std::uint64_t>(steps()) * micro_batches.size();
  for (const HostBatch& host : micro_batches) {
    context_.set_noise(config_.train.seed, position++);
    const DeviceBatch batch = upload_batch(backend(), host);
    losses.push_back(backend().allocate(DType::f32, batch.targets.shape()));
    backend().run_repeated(
        [&] { accumulate_gradients(model_, context_, recipe_, batch, gradient_scale, losses.back()); });
  }
  for (const Tensor& of_batch : losses) sum.nats += sum_losses(backend(), of_batch);
  return sum;
}

void Trainer::fail_non_finite(double loss, float norm) const {
  fail(ErrorKind::non_finite,
       "step {}: loss {}, gradient norm {}: not finite. The weights are those of step {}. Hint: a lower "
       "train.lr, a longer "
       "train.warmup_steps or a smaller train.clip; precision = \"bf16\" tells whether FP8 is the reason",
       steps() + 1, loss, norm, steps());
}

LossSum Trainer::evaluate(const ValidationBatches& batches) {
  return quaver::evaluate(model_, context_, recipe_, batches, config_.train.eval_batches);
}

}  // namespace quaver
