/// Cross entropy of a model on batches: with gradients, or as an evaluation that leaves no trace.
#pragma once

#include <cstdint>
#include <optional>

#include "quaver/language_model.h"
#include "text/batches.h"

namespace quaver {

/// The sum of the losses of some target tokens.
struct LossSum {
  double nats = 0;
  std::int64_t tokens = 0;  ///< targets
  std::int64_t bytes = 0;   ///< of text in the targets; 0: not known

  double mean() const;           ///< nats per token
  double bits_per_byte() const;  ///< all nats, of document borders too, over `bytes`
  LossSum& operator+=(const LossSum& other);
  friend bool operator==(const LossSum&, const LossSum&) = default;
};

/// A batch on the backend's device.
struct DeviceBatch {
  TokenBatch tokens;
  Tensor targets;  ///< i32[M]; -1: none
};
DeviceBatch upload_batch(Backend& backend, const HostBatch& batch);

/// Logits of `tokens` in an Autocast scope of its own: FP8 under `recipe`, high precision without one.
Tensor forward_logits(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                      const TokenBatch& tokens, LanguageModel::Saved* saved);

/// Forward and backward of one micro-batch: adds gradient_scale * d(sum of losses) to every gradient, and
/// writes the loss of each token to `losses` (f32[M]).
void accumulate_gradients(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                          const DeviceBatch& batch, float gradient_scale, const Tensor& losses);

/// The loss on `max_batches` batches spread evenly over the validation text (0: on all of it).
LossSum evaluate(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                 const ValidationBatches& batches, std::int64_t max_batches);

/// The sum of per-token losses, in order and in double.
double sum_losses(Backend& backend, const Tensor& losses);

}  // namespace quaver
