#include "train/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "quaver/backend.h"
#include "train/loss.h"

namespace quaver {
namespace {

/// One growing text and the key/value cache of the window at its end.
class Window {
 public:
  Window(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe)
      : model_(model),
        context_(context),
        recipe_(recipe),
        cache_(model.make_cache(model.config().context, context.high_precision())) {}

  void append(std::int32_t token) { text_.push_back(token); }

  /// Logits of the token after the text.
  std::vector<float> next_logits() {
    const std::int64_t context = model_.config().context, length = static_cast<std::int64_t>(text_.size());
    if (length - begin_ > context) {
      begin_ = length - std::max<std::int64_t>(1, context / 2);
      cache_.length = 0;
    }
    const std::int64_t first = begin_ + cache_.length;
    const Tensor logits = forward_logits(model_, context_, recipe_, batch_of(std::span(text_).subspan(first)),
                                         nullptr, &cache_);
    return download(model_.backend(), logits.slice(logits.rows() - 1, 1));
  }

 private:
  TokenBatch batch_of(std::span<const std::int32_t> tokens) {
    const auto count = static_cast<std::int64_t>(tokens.size());
    std::vector<std::int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(cache_.length));
    Backend& backend = model_.backend();
    return {1, count, upload(backend, tokens, {count}), upload(backend, positions, {count}), {}};
  }

  LanguageModel& model_;
  Context& context_;
  const std::optional<Recipe>& recipe_;
  KvCache cache_;
  std::vector<std::int32_t> text_;
  std::int64_t begin_ = 0;  // of the window, in text_
};

/// Indices of the `count` largest logits, descending; of equal ones the first comes first.
std::vector<std::int32_t> largest(std::span<const float> logits, std::size_t count) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), before);
  order.resize(count);
  return order;
}

}  // namespace

std::int32_t draw_token(std::span<const float> logits, float temperature, std::int64_t top_k, float uniform) {
  for (const float logit : logits) {
    if (!std::isfinite(logit)) fail(ErrorKind::non_finite, "sample: a logit is {}", logit);
  }
  const bool all = top_k <= 0 || static_cast<std::size_t>(top_k) > logits.size();
  const std::size_t count = temperature <= 0 ? 1 : all ? logits.size() : static_cast<std::size_t>(top_k);
  const std::vector<std::int32_t> candidates = largest(logits, count);
  const auto logit = [&](std::int32_t token) {
    return static_cast<double>(logits[static_cast<std::size_t>(token)]);
  };
  std::vector<double> cumulative;
  double total = 0;
  for (const std::int32_t token : candidates) {
    total += count == 1 ? 1 : std::exp((logit(token) - logit(candidates.front())) / temperature);
    cumulative.push_back(total);
  }
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * total);
  return candidates[std::min<std::size_t>(static_cast<std::size_t>(found - cumulative.begin()), count - 1)];
}

std::int64_t generate(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                      const Tokenizer& tokenizer, std::string_view prompt, const SampleOptions& options,
                      const std::function<void(std::string_view)>& emit) {
  require(tokenizer.vocab() <= model.config().vocab, "sample: the tokenizer has {} ids, the model {}",
          tokenizer.vocab(), model.config().vocab);
  const NoGradients evaluation(context);
  const Random random(options.seed, stable_hash("sample"));
  Window window(model, context, recipe);
  window.append(tokenizer.document_token());
  for (const std::int32_t token : tokenizer.encode(prompt)) window.append(token);
  for (std::int64_t i = 0; i < options.tokens; ++i) {
    std::vector<float> logits = window.next_logits();
    logits.resize(static_cast<std::size_t>(tokenizer.vocab()));  // a model may have more ids than that
    const auto token =
        draw_token(logits, options.temperature, options.top_k, random.uniform(static_cast<std::uint64_t>(i)));
    if (token == tokenizer.document_token()) return i;
    emit(tokenizer.bytes_of(token));
    window.append(token);
  }
  return options.tokens;
}

}  // namespace quaver
