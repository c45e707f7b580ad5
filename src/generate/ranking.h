/// The likeliest tokens of a row of logits, and their probabilities.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace quaver {

/// Indices of the `count` largest logits (at most all), descending; of equal ones the first comes first.
std::vector<std::int32_t> largest(std::span<const float> logits, std::size_t count);

struct TokenScore {
  std::int32_t token = 0;
  float logprob = 0;  ///< natural logarithm of its probability
};

/// What a model says of one token of a text, given those before it.
struct PositionScores {
  TokenScore token;
  std::vector<TokenScore> top;  ///< the likeliest tokens, descending
};

/// `token` and the `top` likeliest tokens under softmax(logits), summed in double. Throws Error(non_finite) for logits
/// that are not finite.
PositionScores score(std::span<const float> logits, std::int32_t token, std::int64_t top);

}  // namespace quaver
