#include "train/loss.h"

#include <algorithm>
#include <numbers>
#include <numeric>

#include "quaver/backend.h"

namespace quaver {
namespace {

/// Where the gradient of the logits was written. The logits themselves are freed here, before backward.
Output logits_gradient(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                       const DeviceBatch& batch, float gradient_scale, const Tensor& losses,
                       LanguageModel::Saved& saved) {
  const Tensor logits = forward_logits(model, context, recipe, batch.tokens, &saved);
  Output dlogits = model.make_logits_gradient(context, saved);
  if (dlogits.values) dlogits.values = logits;  // overwritten in place: logits are the largest activation
  model.backend().cross_entropy(logits, batch.targets, gradient_scale, losses, dlogits);
  return dlogits;
}

}  // namespace

double LossSum::mean() const {
  return nats / static_cast<double>(tokens);
}

double LossSum::bits_per_byte() const {
  return nats / std::numbers::ln2 / static_cast<double>(bytes);
}

LossSum& LossSum::operator+=(const LossSum& other) {
  nats += other.nats;
  tokens += other.tokens;
  bytes += other.bytes;
  return *this;
}

DeviceBatch upload_batch(Backend& backend, const HostBatch& batch) {
  const Shape shape{batch.batch * batch.length};
  // Absent says the same as zeros, and that there are no borders: a backend may have a faster attention without.
  const bool has_borders =
      std::any_of(batch.first_key.begin(), batch.first_key.end(), [](auto key) { return key != 0; });
  return {{batch.batch, batch.length, upload(backend, batch.tokens, shape),
           upload(backend, batch.positions, shape),
           has_borders ? upload(backend, batch.first_key, shape) : Tensor()},
          upload(backend, batch.targets, shape)};
}

Tensor forward_logits(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                      const TokenBatch& tokens, LanguageModel::Saved* saved) {
  const Autocast scope(context, recipe.has_value(), recipe.value_or(DelayedScaling{}));
  return model.forward(context, tokens, saved);
}

void accumulate_gradients(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                          const DeviceBatch& batch, float gradient_scale, const Tensor& losses) {
  LanguageModel::Saved saved;
  const Output dlogits = logits_gradient(model, context, recipe, batch, gradient_scale, losses, saved);
  const BackwardPass pass(context);
  model.backward(context, saved, dlogits);
}

LossSum evaluate(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                 const ValidationBatches& batches, std::int64_t max_batches) {
  const NoGradients evaluation(context);
  Backend& backend = model.backend();
  LossSum sum;
  for (const std::int64_t index : batches.spread(max_batches)) {
    const HostBatch host = batches.at(index);
    const DeviceBatch batch = upload_batch(backend, host);
    const Tensor logits = forward_logits(model, context, recipe, batch.tokens, nullptr);
    const Tensor losses = backend.allocate(DType::f32, batch.targets.shape());
    backend.cross_entropy(logits, batch.targets, 1, losses, {});
    sum += {sum_losses(backend, losses), host.target_count, host.target_bytes};
  }
  return sum;
}

double sum_losses(Backend& backend, const Tensor& losses) {
  const std::vector<float> values = download(backend, losses);
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace quaver
