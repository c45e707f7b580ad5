/// How often a model finds the right answer the likeliest.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quaver/language_model.h"
#include "text/choice_file.h"

namespace quaver {

struct ChoiceScore {
  double nats = 0;  ///< -log of the probability of the choice's tokens after the context
  std::int64_t tokens = 0;
  double mean() const { return nats / static_cast<double>(tokens); }
};

/// One score a choice. A context that does not fit loses its beginning. Throws Error(data) for a choice that alone fills
/// model.context, and Error(non_finite).
std::vector<ChoiceScore> score_choices(LanguageModel& model, Context& context,
                                       const std::optional<Recipe>& recipe, const ChoiceQuestion& question);

struct ChoiceAccuracy {
  std::int64_t questions = 0;
  std::int64_t right = 0;       ///< the right choice is the likeliest
  std::int64_t right_norm = 0;  ///< the right choice has the least loss per token
  double acc() const { return static_cast<double>(right) / static_cast<double>(questions); }
  double acc_norm() const { return static_cast<double>(right_norm) / static_cast<double>(questions); }
};

/// Of equal choices the first counts.
ChoiceAccuracy evaluate_choices(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                                std::span<const ChoiceQuestion> questions);

}  // namespace quaver
