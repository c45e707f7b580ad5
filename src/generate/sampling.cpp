#include "generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "base/check.h"
#include "generate/ranking.h"

namespace quaver {

void validate(const SamplingOptions& options, std::string_view prefix) {
  require(options.temperature >= 0 && options.temperature <= 100,
          "{}temperature: expected a number in [0, 100], found {}", prefix, options.temperature);
  require(options.top_k >= 0, "{}top_k: expected a number >= 0, found {}", prefix, options.top_k);
  require(options.top_p > 0 && options.top_p <= 1, "{}top_p: expected a number in (0, 1], found {}", prefix,
          options.top_p);
  require(options.repetition_penalty > 0 && options.repetition_penalty <= 100,
          "{}repetition_penalty: expected a number in (0, 100], found {}", prefix,
          options.repetition_penalty);
}

void penalise_repetition(std::span<float> logits, std::span<const std::int32_t> text, float penalty) {
  if (penalty == 1) return;
  for (const std::int32_t token : std::set<std::int32_t>(text.begin(), text.end())) {
    if (static_cast<std::size_t>(token) >= logits.size()) continue;
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

std::int32_t draw_token(std::span<const float> logits, const SamplingOptions& options, float uniform) {
  for (const float logit : logits) {
    if (!std::isfinite(logit)) fail(ErrorKind::non_finite, "sample: a logit is {}", logit);
  }
  const bool all = options.top_k <= 0 || static_cast<std::size_t>(options.top_k) > logits.size();
  const std::size_t count = options.temperature <= 0 ? 1
                            : all                    ? logits.size()
                                                     : static_cast<std::size_t>(options.top_k);
  const std::vector<std::int32_t> candidates = largest(logits, count);
  const auto logit = [&](std::int32_t token) {
    return static_cast<double>(logits[static_cast<std::size_t>(token)]);
  };
  std::vector<double> cumulative;
  double total = 0;
  for (const std::int32_t token : candidates) {
    total += count == 1 ? 1 : std::exp((logit(token) - logit(candidates.front())) / options.temperature);
    cumulative.push_back(total);
  }
  if (options.top_p < 1) {
    const auto last = std::lower_bound(cumulative.begin(), cumulative.end(), options.top_p * total);
    cumulative.erase(last == cumulative.end() ? last : last + 1, cumulative.end());
    total = cumulative.back();
  }
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), uniform * total);
  const auto index = static_cast<std::size_t>(found - cumulative.begin());
  return candidates[std::min(index, cumulative.size() - 1)];
}

}  // namespace quaver
