/// The body of POST /v1/completions, read and checked.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "generate/batch_generator.h"
#include "text/tokenizer.h"

namespace quaver {

struct CompletionLimits {
  std::int64_t context = 0;        ///< model.context: prompt and max_tokens together
  std::int64_t max_tokens = 0;     ///< of one choice
  std::int64_t max_choices = 128;  ///< prompts times n
};

struct CompletionPrompt {
  std::vector<std::int32_t> tokens;
  std::size_t echo_begin =
      0;  ///< the first token of the client's prompt: 1 after a document token that was put before text
};

struct CompletionRequest {
  std::string model;  ///< empty: the one that is served
  std::vector<CompletionPrompt> prompts;
  std::int64_t choices = 1;  ///< `n`: for each prompt
  std::int64_t max_tokens = 16;
  SamplingOptions sampling{.temperature = 1};
  std::uint64_t seed = 0;  ///< random if the client gave none
  std::vector<std::string> stop;
  std::optional<std::int64_t> logprobs;  ///< with log probabilities, and so many likeliest tokens
  bool echo = false, stream = false, stream_usage = false;

  /// What to generate, choices of the first prompt first.
  std::vector<GenerationRequest> texts(const Tokenizer& tokenizer) const;
};

/// A prompt of text is tokenized after a document token; one of token ids is taken as it is. Throws Error(usage), naming the
/// member, for JSON that is no such request, for members that Quaver does not know or cannot honour, and beyond the limits.
CompletionRequest parse_completion_request(std::string_view body, const Tokenizer& tokenizer,
                                           const CompletionLimits& limits);

}  // namespace quaver
