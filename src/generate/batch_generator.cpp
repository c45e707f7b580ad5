#include "generate/batch_generator.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

/// A prompt enters in pieces of this many tokens, counted from its own beginning: texts that are being continued do not
/// wait for a long prompt, and the pieces do not depend on who else is there.
constexpr std::int64_t kPromptPiece = 256;

}  // namespace

BatchGenerator::BatchGenerator(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                               const Options& options)
    : model_(model), context_(context), recipe_(std::move(recipe)), options_(options) {
  require(options_.max_texts >= 1, "generate: room for {} texts", options_.max_texts);
  if (options_.vocab == 0) options_.vocab = model.config().vocab;
  require(options_.vocab <= model.config().vocab, "generate: the tokenizer has {} ids, the model {}",
          options_.vocab, model.config().vocab);
}

std::uint64_t BatchGenerator::join(GenerationRequest request) {
  require(!full(), "generate: {} texts are being continued already", texts());
  require(!request.prompt.empty(), "generate: the prompt has no token");
  for (const std::int32_t token : request.prompt)
    require(token >= 0 && token < model_.config().vocab, "generate: token {}: expected an id in [0, {})",
            token, model_.config().vocab);
  require(
      !request.score_prompt || static_cast<std::int64_t>(request.prompt.size()) <= model_.config().context,
      "generate: {} tokens to score exceed model.context = {}", request.prompt.size(),
      model_.config().context);
  validate(request.sampling, "");
  Text text{next_id_++, std::move(request), {}, {}};
  text.tokens = text.request.prompt;
  if (free_.empty()) {
    text.cache = model_.make_cache(model_.config().context, context_.high_precision());
  } else {
    text.cache = std::move(free_.back());
    free_.pop_back();
  }
  texts_.push_back(std::move(text));
  return texts_.back().id;
}

void BatchGenerator::leave(std::uint64_t id) {
  const auto found = std::find_if(texts_.begin(), texts_.end(), [&](const Text& t) { return t.id == id; });
  if (found == texts_.end()) return;
  found->cache.length = 0;
  free_.push_back(std::move(found->cache));
  texts_.erase(found);
}

/// Begins a new window when this one is full, and says how many tokens come next.
void BatchGenerator::prepare(Text& text) const {
  const std::int64_t context = model_.config().context;
  const auto length = static_cast<std::int64_t>(text.tokens.size());
  if (length - text.begin > context) {
    text.begin = length - std::max<std::int64_t>(1, context / 2);
    text.cache.length = 0;
  }
  text.next_rows = std::min(length - text.known(), kPromptPiece);
}

/// Texts with one token to add go first: those that are being continued never wait for prompts.
std::vector<BatchGenerator::Text*> BatchGenerator::choose() {
  std::vector<Text*> chosen;
  std::int64_t rows = 0;
  for (const bool single : {true, false}) {
    for (Text& text : texts_) {
      if ((text.next_rows == 1) != single) continue;
      if (rows > 0 && options_.max_rows > 0 && rows + text.next_rows > options_.max_rows) continue;
      rows += text.next_rows;
      chosen.push_back(&text);
    }
  }
  return chosen;
}

std::int64_t BatchGenerator::wanted_logits(const Text& text) const {
  const bool scoring = text.request.score_prompt && text.drawn == 0;
  if (scoring) return text.next_rows;
  return text.known() + text.next_rows == static_cast<std::int64_t>(text.tokens.size()) ? 1 : 0;
}

void BatchGenerator::draw(Text& text, std::span<const float> logits, GenerationEvent& event) const {
  const GenerationRequest& request = text.request;
  // A model may have more ids than its tokenizer.
  std::vector<float> allowed(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(options_.vocab));
  penalise_repetition(allowed, text.tokens, request.sampling.repetition_penalty);
  const Random random(request.seed, stable_hash("sample") + request.stream);
  const std::int32_t token =
      draw_token(allowed, request.sampling, random.uniform(static_cast<std::uint64_t>(text.drawn)));
  if (token == request.end_token) {
    event.finish = Finish::end_token;
    return;
  }
  ++text.drawn;
  text.tokens.push_back(token);
  event.token = token;
  if (request.top_scores) event.token_score = score(logits, token, *request.top_scores);
  if (text.drawn == request.max_tokens) event.finish = Finish::length;
}

/// `logits`: those that `wanted_logits` asked for, of tokens that end where the cache ends now.
void BatchGenerator::read_logits(Text& text, std::span<const float> logits, GenerationEvent& event) const {
  const auto vocab = static_cast<std::size_t>(model_.config().vocab);
  const std::int64_t rows = static_cast<std::int64_t>(logits.size() / vocab);
  const GenerationRequest& request = text.request;
  const auto row = [&](std::int64_t i) { return logits.subspan(static_cast<std::size_t>(i) * vocab, vocab); };
  if (request.score_prompt && text.drawn == 0) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto next = static_cast<std::size_t>(text.known() - rows + i + 1);
      if (next < text.tokens.size())
        event.prompt_scores.push_back(score(row(i), text.tokens[next], request.top_scores.value_or(0)));
    }
  }
  if (text.known() != static_cast<std::int64_t>(text.tokens.size())) return;
  if (request.max_tokens <= 0) {
    event.finish = Finish::length;
  } else {
    draw(text, row(rows - 1), event);
  }
}

std::vector<GenerationEvent> BatchGenerator::step() {
  for (Text& text : texts_) prepare(text);
  const std::vector<Text*> chosen = choose();
  if (chosen.empty()) return {};
  std::vector<std::int32_t> tokens;
  std::vector<CacheExtension> extensions;
  for (Text* text : chosen) {
    const auto begin = text->tokens.begin() + static_cast<std::ptrdiff_t>(text->known());
    tokens.insert(tokens.end(), begin, begin + static_cast<std::ptrdiff_t>(text->next_rows));
    extensions.push_back({&text->cache, text->next_rows, wanted_logits(*text)});
  }
  Backend& backend = model_.backend();
  const NoGradients evaluation(context_);
  std::vector<float> logits;
  {
    const Autocast scope(context_, recipe_.has_value(), recipe_.value_or(DelayedScaling{}));
    logits = download(
        backend, model_.extend(context_, upload(backend, tokens, {static_cast<std::int64_t>(tokens.size())}),
                               extensions));
  }

  std::vector<GenerationEvent> events;
  std::span<const float> rest = logits;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    GenerationEvent event;
    event.id = chosen[i]->id;
    const auto count = static_cast<std::size_t>(extensions[i].logits * model_.config().vocab);
    try {
      read_logits(*chosen[i], rest.first(count), event);
    } catch (const Error&) {
      event.finish = Finish::failed;
      event.failure = std::current_exception();
    }
    rest = rest.subspan(count);
    events.push_back(std::move(event));
  }
  for (const GenerationEvent& event : events) {
    if (event.finish != Finish::none) leave(event.id);
  }
  return events;
}

}  // namespace quaver
