/// Drawing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace quaver {

struct SamplingOptions {
  float temperature = 0.8f;  ///< divides the logits; 0: always the likeliest token
  std::int64_t top_k = 0;    ///< draw among this many likeliest tokens; 0: among all
  float top_p = 1;           ///< draw among the fewest likeliest tokens that together have this probability
  /// The logit of every token that the text holds is divided by it if positive, else multiplied (arXiv
  /// 1909.05858); 1: none.
  float repetition_penalty = 1;
};

/// Throws Error(usage), naming the option with `prefix` before it, for a value out of its range: temperature in [0, 100],
/// top_k >= 0, top_p in (0, 1], repetition_penalty in (0, 100].
void validate(const SamplingOptions& options, std::string_view prefix);

/// Applies the repetition penalty for the tokens of `text`.
void penalise_repetition(std::span<float> logits, std::span<const std::int32_t> text, float penalty);

/// The token drawn by `uniform` in [0, 1): softmax(logits / temperature) over the top_k largest logits, of equal ones the
/// first, and of these over the top_p part. Throws Error(non_finite) for logits that are not finite.
std::int32_t draw_token(std::span<const float> logits, const SamplingOptions& options, float uniform);

}  // namespace quaver
