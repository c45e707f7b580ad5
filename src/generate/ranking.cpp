#include "generate/ranking.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace quaver {

std::vector<std::int32_t> largest(std::span<const float> logits, std::size_t count) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), before);
  order.resize(count);
  return order;
}

PositionScores score(std::span<const float> logits, std::int32_t token, std::int64_t top) {
  const double maximum = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - maximum);
  const double denominator = maximum + std::log(sum);
  if (!std::isfinite(denominator)) fail(ErrorKind::non_finite, "score: logits are not finite");
  const auto scored = [&](std::int32_t t) {
    return TokenScore{t, static_cast<float>(logits[static_cast<std::size_t>(t)] - denominator)};
  };
  PositionScores scores{scored(token), {}};
  for (const std::int32_t t : largest(logits, static_cast<std::size_t>(top))) scores.top.push_back(scored(t));
  return scores;
}

}  // namespace quaver
