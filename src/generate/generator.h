/// Texts continued by a model: prompts in, text out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "generate/batch_generator.h"
#include "text/tokenizer.h"

namespace quaver {

struct SampleOptions {
  std::int64_t tokens = 200;  ///< at most; a text also ends at the end of its document and at a stop string
  SamplingOptions sampling;
  std::uint64_t seed = 1;  ///< of every prompt
  std::vector<std::string> stop;
  std::int64_t max_batch = 16;  ///< prompts that are continued at once
};

struct GeneratedText {
  std::int64_t tokens = 0;  ///< drawn, those of a stop string included
  bool ended = false;       ///< by the end of the document or a stop string
};

/// The document's token and the text's: what a model continues.
std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text);

/// Takes the next part of the text of prompt number `prompt`, in whole characters; `finished` with the last one, which may
/// be empty.
using EmitText = std::function<void(std::size_t prompt, std::string_view text, bool finished)>;

/// Continues every prompt, passing on its text, without the prompt, as it is drawn. Each text is what its prompt alone would
/// give (see BatchGenerator).
std::vector<GeneratedText> generate(LanguageModel& model, Context& context,
                                    const std::optional<Recipe>& recipe, const Tokenizer& tokenizer,
                                    std::span<const std::string> prompts, const SampleOptions& options,
                                    const EmitText& emit);

}  // namespace quaver
