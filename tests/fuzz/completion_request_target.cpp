/// Any bytes as the body of a completion request: refused as wrong usage, which becomes a status of 400, or accepted with
/// everything in the ranges that the generator relies on.
#include <cstdlib>
#include <string_view>

#include "fuzz/target.h"
#include "quaver/error.h"
#include "serve/completion_request.h"

namespace {

constexpr quaver::CompletionLimits kLimits{.context = 64, .max_tokens = 32, .max_choices = 8};

void check_accepted(const quaver::CompletionRequest& request, const quaver::Tokenizer& tokenizer) {
  const auto texts = request.texts(tokenizer);
  if (texts.empty() || texts.size() > static_cast<std::size_t>(kLimits.max_choices)) std::abort();
  for (const std::string& stop : request.stop) {
    if (stop.empty()) std::abort();
  }
  for (const quaver::CompletionPrompt& prompt : request.prompts) {
    if (prompt.echo_begin > prompt.tokens.size()) std::abort();
  }
  for (const quaver::GenerationRequest& text : texts) {
    if (text.prompt.empty() || text.max_tokens < 0 || text.max_tokens > kLimits.max_tokens) std::abort();
    if (static_cast<std::int64_t>(text.prompt.size()) + text.max_tokens > kLimits.context) std::abort();
    for (const std::int32_t token : text.prompt) {
      if (token < 0 || token >= tokenizer.vocab()) std::abort();
    }
    quaver::validate(text.sampling, "");
    if (text.top_scores && (*text.top_scores < 0 || *text.top_scores > 20)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto tokenizer = quaver::load_tokenizer("bytes");
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  quaver::CompletionRequest request;
  try {
    request = quaver::parse_completion_request(body, *tokenizer, kLimits);
  } catch (const quaver::Error& error) {
    if (error.kind() != quaver::ErrorKind::usage) std::abort();
    return 0;
  }
  check_accepted(request, *tokenizer);  // what it throws ends the program
  return 0;
}
