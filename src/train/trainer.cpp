#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "quaver/backend.h"
#include "train/fp8_policy.h"
#include "train/masters.h"
#include "train/run_precision.h"

namespace quaver {
namespace {

std::string describe_non_finite(const StepResult& result) {
  const double loss = result.loss.mean();
  if (!std::isfinite(loss)) return fmt::format("loss {}", loss);
  if (result.casts.non_finite() > 0)
    return fmt::format("loss {}, {} NaN and {} infinities cast to FP8", loss, result.casts.nan,
                       result.casts.infinite);
  return fmt::format("loss {}, gradient norm {}", loss, result.gradient_norm);
}

LossSum count_targets(std::span<const HostBatch> batches) {
  LossSum sum;
  for (const HostBatch& batch : batches) sum += {0, batch.target_count, batch.target_bytes};
  return sum;
}

}  // namespace

AdamW::Options optimizer_options(const RunConfig& config) {
  const TrainConfig& train = config.train;
  return {.beta1 = train.beta1,
          .beta2 = train.beta2,
          .epsilon = train.epsilon,
          .weight_decay = train.weight_decay,
          .clip = train.clip,
          .seed = train.seed,
          .moments = stored_dtype(config.optimizer.moments)};
}

Trainer::Trainer(std::shared_ptr<Backend> backend, const RunConfig& config)
    : Trainer(backend, resolve_fp8_auto(backend, config)) {}

Trainer::Trainer(const std::shared_ptr<Backend>& backend, Resolved resolved)
    : config_(std::move(resolved.config)),
      model_(backend, config_.model, config_.train.seed),
      context_(model_.backend(), activation_dtype(config_.precision)),
      recipe_(run_recipe(config_)),
      optimizer_(model_.backend(), model_, optimizer_options(config_)),
      slots_(model_),
      scales_(model_.backend(), slots_),
      casts_(model_.backend(), slots_),
      measured_(std::move(resolved.measured)) {
  store_masters(model_, stored_dtype(config_.optimizer.masters));
  apply_fp8_policy(model_, config_.fp8, config_.model.layers);
  require_recipes(model_, recipe_);
}

Trainer::Resolved Trainer::resolve_fp8_auto(const std::shared_ptr<Backend>& backend, RunConfig config) {
  if (!std::exchange(config.fp8.measured, false)) return {std::move(config), {}};
  const std::optional<Recipe> recipe = run_recipe(config);
  if (!recipe) return {std::move(config), {}};
  const bool all_delayed =
      std::all_of(config.fp8.overrides.begin(), config.fp8.overrides.end(),
                  [](const auto& o) { return o.recipe == kBf16 || o.recipe == "delayed"; });
  require(is_delayed(*recipe) && all_delayed,
          "fp8.auto: times delayed scaling alone; found fp8.recipe = \"{}\"{}. Hint: fp8.auto = false",
          config.fp8.recipe, all_delayed ? "" : " and an [[fp8.override]] with another recipe");
  Fp8AutoReport measured;
  std::vector<Fp8Override> found;
  {  // The model gives back its memory before whole steps need it.
    LanguageModel model(backend, config.model, config.train.seed);
    apply_fp8_policy(model, config.fp8, config.model.layers);
    measured.linears = measure_linears(*backend, model, *recipe, config.train.batch * config.model.context,
                                       config.train.accumulation);
    std::vector<std::string> names;
    for (const NamedLinear& linear : linears_of(model)) names.push_back(linear.name);
    found = overrides_of(measured.linears, names);
  }
  if (backend->device() != Device::host) {
    measured.steps = time_steps(backend, config, found);
    const StepChoice choice = fastest_step(*measured.steps);
    if (choice == StepChoice::fp8) found.clear();
    if (choice == StepChoice::bf16) found = bf16_everywhere(describe(*measured.steps));
  }
  // Before the run file's own, which win.
  config.fp8.overrides.insert(config.fp8.overrides.begin(), found.begin(), found.end());
  return {std::move(config), std::move(measured)};
}

StepResult Trainer::step(float lr, std::span<const HostBatch> micro_batches, const DuringStep& during) {
  // Nothing is read on the host before all of the step is under way.
  casts_.begin();
  scales_.take();
  const std::int64_t every = config_.fp8.histogram_every;
  const bool counts_exponents = every > 0 && (steps() + 1) % every == 0;
  if (counts_exponents) clear_exponents(backend(), model_);
  context_.count_exponents(counts_exponents);
  StepResult result;
  result.loss = count_targets(micro_batches);
  const std::vector<Tensor> losses = accumulate(micro_batches, result.loss.tokens);
  if (during.gradients_ready) during.gradients_ready(model_);
  casts_.end();
  optimizer_.begin_step(lr, [&](const Tensor& norm) {
    for (const Tensor& of_batch : losses) backend().refuse_non_finite(of_batch, norm);
    backend().refuse_non_finite_casts(casts_.before(), casts_.after(), norm);
  });
  if (during.handed_out) during.handed_out();
  result.gradient_norm = optimizer_.end_step();
  for (const Tensor& of_batch : losses) result.loss.nats += sum_losses(backend(), of_batch);
  result.casts = casts_.counts();
  if (optimizer_.accepts(result.gradient_norm)) return result;
  scales_.restore();
  optimizer_.drop_gradients();
  result.skipped = describe_non_finite(result);
  if (config_.train.nonfinite == NonFinite::stop) fail_non_finite(result.skipped);
  return result;
}

std::vector<Tensor> Trainer::accumulate(std::span<const HostBatch> micro_batches,
                                        std::int64_t target_tokens) {
  require(target_tokens > 0, "train: a step without target tokens");
  const float gradient_scale = static_cast<float>(1.0 / static_cast<double>(target_tokens));
  std::vector<Tensor> losses;
  auto position = static_cast<std::uint64_t>(steps()) * micro_batches.size();
  for (const HostBatch& host : micro_batches) {
    context_.set_noise(config_.train.seed, position++);
    const DeviceBatch batch = upload_batch(backend(), host);
    losses.push_back(backend().allocate(DType::f32, batch.targets.shape()));
    backend().run_repeated(
        [&] { accumulate_gradients(model_, context_, recipe_, batch, gradient_scale, losses.back()); });
  }
  return losses;
}

void Trainer::fail_non_finite(const std::string& what) const {
  fail(ErrorKind::non_finite,
       "step {}: {}: not finite. The weights are those of step {}. Hint: a lower train.lr, a longer "
       "train.warmup_steps or a smaller train.clip; precision = \"bf16\" tells whether FP8 is the reason; "
       "train.nonfinite = \"skip\" leaves such steps out",
       steps() + 1, what, steps());
}

LossSum Trainer::evaluate(const ValidationBatches& batches) {
  return quaver::evaluate(model_, context_, recipe_, batches, config_.train.eval_batches);
}

}  // namespace quaver
