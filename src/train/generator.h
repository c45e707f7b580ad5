/// Sampling text from a model, with a key/value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "quaver/language_model.h"
#include "text/tokenizer.h"

namespace quaver {

struct SampleOptions {
  std::int64_t tokens = 200;  ///< at most; generation also ends at the end of the document
  float temperature = 0.8f;   ///< 0: always the likeliest token
  std::int64_t top_k = 0;     ///< draw among this many likeliest tokens; 0: among all
  std::uint64_t seed = 1;
};

/// The token drawn by `uniform` in [0, 1): the distribution softmax(logits / temperature) over the top_k
/// largest logits, of equal ones the first. Throws Error(non_finite) for logits that are not finite.
std::int32_t draw_token(std::span<const float> logits, float temperature, std::int64_t top_k, float uniform);

/// Continues `prompt`, calling `emit` with the bytes of each token as it is drawn, and returns the number of
/// tokens. A function of
/// the model's bits, the prompt and the options alone. When the window is full, the last half of it becomes
/// the beginning of a new one.
std::int64_t generate(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                      const Tokenizer& tokenizer, std::string_view prompt, const SampleOptions& options,
                      const std::function<void(std::string_view)>& emit);

}  // namespace quaver
