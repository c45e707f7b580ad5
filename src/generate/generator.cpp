#include "generate/generator.h"

#include <algorithm>
#include <exception>
#include <map>

#include "generate/text_stream.h"

namespace quaver {
namespace {

struct Growing {
  std::size_t prompt;
  TextStream stream;
};

GenerationRequest request_of(const Tokenizer& tokenizer, const std::string& prompt,
                             const SampleOptions& options) {
  GenerationRequest request;
  request.prompt = prompt_tokens(tokenizer, prompt);
  request.max_tokens = options.tokens;
  request.sampling = options.sampling;
  request.seed = options.seed;
  request.end_token = tokenizer.document_token();
  return request;
}

}  // namespace

std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int32_t> tokens = {tokenizer.document_token()};
  tokenizer.make_encoder()->encode(text, tokens);
  return tokens;
}

std::vector<GeneratedText> generate(LanguageModel& model, Context& context,
                                    const std::optional<Recipe>& recipe, const Tokenizer& tokenizer,
                                    std::span<const std::string> prompts, const SampleOptions& options,
                                    const EmitText& emit) {
  std::vector<GeneratedText> results(prompts.size());
  const auto count = static_cast<std::int64_t>(prompts.size());
  BatchGenerator generator(
      model, context, recipe,
      {.max_texts = std::clamp<std::int64_t>(count, 1, options.max_batch), .vocab = tokenizer.vocab()});
  std::map<std::uint64_t, Growing> growing;
  std::size_t next = 0;
  if (options.tokens == 0) {
    for (; next < prompts.size(); ++next) emit(next, "", true);
  }
  while (next < prompts.size() || !growing.empty()) {
    for (; next < prompts.size() && !generator.full(); ++next) {
      const std::uint64_t id = generator.join(request_of(tokenizer, prompts[next], options));
      growing.emplace(id, Growing{next, TextStream(options.stop)});
    }
    for (const GenerationEvent& event : generator.step()) {
      if (event.failure) std::rethrow_exception(event.failure);
      Growing& text = growing.at(event.id);
      GeneratedText& result = results[text.prompt];
      std::string shown;
      if (event.token) {
        ++result.tokens;
        shown = text.stream.append(tokenizer.bytes_of(*event.token));
      }
      result.ended = event.finish == Finish::end_token || text.stream.stopped();
      const bool finished = event.finish != Finish::none || result.ended;
      if (finished) shown += text.stream.finish();
      if (!shown.empty() || finished) emit(text.prompt, shown, finished);
      if (!finished) continue;
      generator.leave(event.id);
      growing.erase(event.id);
    }
  }
  return results;
}

}  // namespace quaver
