/// How much a model's forward keeps for its backward.
#pragma once

#include "quaver/backend.h"
#include "quaver/language_model.h"

namespace quaver::testing {

/// Bytes that a second forward leaves in use; the first makes copies of weights and slots.
inline std::int64_t saved_bytes(const std::shared_ptr<Backend>& backend, const ModelConfig& config,
                                const TokenBatch& batch, bool fp8) {
  LanguageModel model(backend, config, 1);
  Context context(*backend);
  const auto forward = [&](LanguageModel::Saved& saved) {
    const Autocast scope(context, fp8, DelayedScaling{.amax_history_len = 3});
    model.forward(context, batch, &saved);
  };
  {
    LanguageModel::Saved warm_up;
    forward(warm_up);
  }
  const std::int64_t before = backend->memory_use().in_use;
  LanguageModel::Saved saved;
  forward(saved);
  return backend->memory_use().in_use - before;
}

}  // namespace quaver::testing
