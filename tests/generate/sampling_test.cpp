#include "generate/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "generate/ranking.h"
#include "support/errors.h"

namespace quaver {
namespace {

using Logits = std::vector<float>;

std::set<std::int32_t> all_drawn(const Logits& logits, const SamplingOptions& options) {
  std::set<std::int32_t> drawn;
  for (int i = 0; i < 100; ++i) drawn.insert(draw_token(logits, options, static_cast<float>(i) / 100));
  return drawn;
}

TEST(DrawToken, ZeroTemperatureTakesTheLikeliestAndTheFirstOfEquals) {
  EXPECT_EQ(draw_token(Logits{1, 3, 2, 3}, {.temperature = 0}, 0.999f), 1);
}

TEST(DrawToken, FollowsTheDistribution) {
  const Logits logits = {0, std::log(3.0f)};  // shares 1/4 and 3/4; the likelier comes first
  const SamplingOptions options{.temperature = 1};
  EXPECT_EQ(draw_token(logits, options, 0.0f), 1);
  EXPECT_EQ(draw_token(logits, options, 0.74f), 1);
  EXPECT_EQ(draw_token(logits, options, 0.76f), 0);
  EXPECT_EQ(draw_token(logits, options, 0.99999994f), 0);
}

TEST(DrawToken, TemperatureDividesLogits) {
  const Logits logits = {0, 2 * std::log(3.0f)};
  EXPECT_EQ(draw_token(logits, {.temperature = 2}, 0.74f), 1);
  EXPECT_EQ(draw_token(logits, {.temperature = 2}, 0.76f), 0);
}

TEST(DrawToken, TopKLeavesTheRestOut) {
  const Logits logits = {1, 1, 1, 2};
  EXPECT_EQ(all_drawn(logits, {.temperature = 100, .top_k = 2}), (std::set<std::int32_t>{0, 3}));
  EXPECT_EQ(draw_token(logits, {.temperature = 100, .top_k = 99}, 0.999f), 2);
}

TEST(DrawToken, TopPTakesTheFewestThatHaveThatProbability) {
  // Shares 8/16, 4/16, 2/16, 1/16, 1/16.
  const Logits logits = {std::log(2.0f), std::log(8.0f), 0, std::log(4.0f), 0};
  const auto drawn = [&](float top_p) { return all_drawn(logits, {.temperature = 1, .top_p = top_p}); };
  EXPECT_EQ(drawn(0.01f), (std::set<std::int32_t>{1}));
  EXPECT_EQ(drawn(0.49f), (std::set<std::int32_t>{1}));
  EXPECT_EQ(drawn(0.51f), (std::set<std::int32_t>{1, 3}));
  EXPECT_EQ(drawn(0.74f), (std::set<std::int32_t>{1, 3}));
  EXPECT_EQ(drawn(0.76f), (std::set<std::int32_t>{0, 1, 3}));
  EXPECT_EQ(drawn(1), (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  // The remaining ones are drawn in proportion: 8 of 12, 4 of 12.
  EXPECT_EQ(draw_token(logits, {.temperature = 1, .top_p = 0.7f}, 0.66f), 1);
  EXPECT_EQ(draw_token(logits, {.temperature = 1, .top_p = 0.7f}, 0.67f), 3);
  // Within the top_k likeliest: 8 of 12 alone have 0.6 of these.
  EXPECT_EQ(all_drawn(logits, {.temperature = 1, .top_k = 2, .top_p = 0.6f}), (std::set<std::int32_t>{1}));
}

TEST(DrawToken, RefusesLogitsThatAreNotFinite) {
  const Logits logits = {0, std::numeric_limits<float>::quiet_NaN()};
  error_message(ErrorKind::non_finite, [&] { draw_token(logits, {}, 0.5f); });
}

TEST(RepetitionPenalty, MakesTokensOfTheTextLessLikelyOnce) {
  Logits logits = {3, -3, 3, -3};
  penalise_repetition(logits, std::vector<std::int32_t>{0, 1, 1, 0, 0, 99}, 1.5f);
  EXPECT_EQ(logits, (Logits{2, -4.5f, 3, -3}));
  penalise_repetition(logits, std::vector<std::int32_t>{2}, 1);
  EXPECT_EQ(logits[2], 3);
}

TEST(SamplingOptions, AreChecked) {
  const auto message = [](const SamplingOptions& options) {
    return error_message(ErrorKind::usage, [&] { validate(options, "x."); });
  };
  validate({}, "");
  EXPECT_TRUE(contains(message({.temperature = -1}), "x.temperature: expected"));
  EXPECT_TRUE(contains(message({.temperature = std::nanf("")}), "x.temperature"));
  EXPECT_TRUE(contains(message({.top_k = -1}), "x.top_k"));
  EXPECT_TRUE(contains(message({.top_p = 0}), "x.top_p"));
  EXPECT_TRUE(contains(message({.top_p = 1.5f}), "x.top_p"));
  EXPECT_TRUE(contains(message({.repetition_penalty = 0}), "x.repetition_penalty"));
}

TEST(Score, IsTheLogOfTheSoftmax) {
  const Logits logits = {std::log(1.0f), std::log(5.0f), std::log(2.0f)};
  const PositionScores scores = score(logits, 2, 2);
  EXPECT_EQ(scores.token.token, 2);
  EXPECT_NEAR(scores.token.logprob, std::log(0.25), 1e-6);
  ASSERT_EQ(scores.top.size(), 2u);
  EXPECT_EQ(scores.top[0].token, 1);
  EXPECT_NEAR(scores.top[0].logprob, std::log(0.625), 1e-6);
  EXPECT_EQ(scores.top[1].token, 2);
  EXPECT_EQ(scores.top[1].logprob, scores.token.logprob);
  EXPECT_EQ(score(logits, 0, 99).top.size(), 3u);
  error_message(ErrorKind::non_finite, [&] { score(Logits{0, std::nanf("")}, 0, 0); });
}

}  // namespace
}  // namespace quaver
