#include "generate/multiple_choice.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "quaver/backend.h"
#include "train/loss.h"

namespace quaver {
namespace {

/// The question as one batch: a row a choice, the context before each, and targets for the choices' tokens alone. What fills
/// up short rows comes after everything that counts, where no token sees it.
HostBatch batch_of(const ChoiceQuestion& question, std::int64_t limit) {
  std::size_t longest = 0;
  for (const auto& choice : question.choices) longest = std::max(longest, choice.size());
  // The last token of a choice is only a target.
  const auto room = static_cast<std::size_t>(limit) + 1;
  if (longest >= room)
    fail(ErrorKind::data, "a choice of {} tokens leaves no room for its context in model.context = {}",
         longest, limit);
  const std::size_t kept = std::min(question.context.size(), room - longest);
  const auto first = question.context.end() - static_cast<std::ptrdiff_t>(kept);
  HostBatch batch;
  batch.batch = static_cast<std::int64_t>(question.choices.size());
  batch.length = static_cast<std::int64_t>(kept + longest - 1);
  const auto length = static_cast<std::size_t>(batch.length), rows = question.choices.size() * length;
  batch.tokens.assign(rows, 0);
  batch.targets.assign(rows, -1);
  batch.first_key.assign(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) batch.positions.push_back(static_cast<std::int32_t>(i % length));
  for (std::size_t row = 0; row < question.choices.size(); ++row) {
    std::vector<std::int32_t> tokens(first, question.context.end());
    tokens.insert(tokens.end(), question.choices[row].begin(), question.choices[row].end());
    std::copy(tokens.begin(), tokens.end() - 1,
              batch.tokens.begin() + static_cast<std::ptrdiff_t>(row * length));
    for (std::size_t at = kept; at < tokens.size(); ++at) batch.targets[row * length + at - 1] = tokens[at];
  }
  return batch;
}

/// The first of the least.
template <typename Key>
std::size_t least(const std::vector<ChoiceScore>& scores, Key key) {
  const auto found =
      std::min_element(scores.begin(), scores.end(),
                       [&](const ChoiceScore& a, const ChoiceScore& b) { return key(a) < key(b); });
  return static_cast<std::size_t>(found - scores.begin());
}

}  // namespace

std::vector<ChoiceScore> score_choices(LanguageModel& model, Context& context,
                                       const std::optional<Recipe>& recipe, const ChoiceQuestion& question) {
  const NoGradients evaluation(context);
  Backend& backend = model.backend();
  const HostBatch host = batch_of(question, model.config().context);
  const DeviceBatch batch = upload_batch(backend, host);
  const Tensor logits = forward_logits(model, context, recipe, batch.tokens, nullptr);
  const Tensor losses = backend.allocate(DType::f32, batch.targets.shape());
  backend.cross_entropy(logits, batch.targets, 1, losses, {});
  const std::vector<float> values = download(backend, losses);
  std::vector<ChoiceScore> scores(question.choices.size());
  for (std::size_t row = 0; row < scores.size(); ++row) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row) * host.length;
    for (auto loss = begin; loss != begin + host.length; ++loss) scores[row].nats += *loss;
    scores[row].tokens = static_cast<std::int64_t>(question.choices[row].size());
    if (!std::isfinite(scores[row].nats))
      fail(ErrorKind::non_finite, "a choice has the loss {}", scores[row].nats);
  }
  return scores;
}

ChoiceAccuracy evaluate_choices(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                                std::span<const ChoiceQuestion> questions) {
  ChoiceAccuracy accuracy;
  for (const ChoiceQuestion& question : questions) {
    const std::vector<ChoiceScore> scores = score_choices(model, context, recipe, question);
    accuracy.right += least(scores, [](const ChoiceScore& score) { return score.nats; }) == question.label;
    accuracy.right_norm +=
        least(scores, [](const ChoiceScore& score) { return score.mean(); }) == question.label;
    ++accuracy.questions;
  }
  return accuracy;
}

}  // namespace quaver
