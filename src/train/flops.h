/// Floating-point operations that a training step needs, for MFU ("model FLOP utilisation": arXiv
/// 2204.02311).
#pragma once

#include <cstdint>

#include "quaver/language_model.h"

namespace quaver {

/// Elements of the weights of all Linears, shared ones counted at each use.
double linear_weights(LanguageModel& model);

/// Per token in sequences of `length`: 6 for every weight of a Linear (2 each in fprop, dgrad and wgrad; a
/// tied lm_head counts, the gather of embeddings does not), and 6 * length * heads * head_dim per layer for
/// causal attention: its two products take 4 * length * heads * head_dim forward, half of it masked, and
/// twice that backward. What an implementation computes again or computes in vain is not counted.
double training_flops_per_token(LanguageModel& model, std::int64_t length);

}  // namespace quaver
