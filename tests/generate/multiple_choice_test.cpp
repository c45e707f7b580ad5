#include "generate/multiple_choice.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/errors.h"
#include "train/loss.h"
#include "train/training_support.h"

namespace quaver {
namespace {

class MultipleChoiceTest : public testing::Test {
 protected:
  /// -log of the probability of the tokens from `begin` on, by a forward over this text alone.
  double nats(const std::vector<std::int32_t>& tokens, std::size_t begin) {
    std::vector<std::int32_t> positions(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
    const auto count = static_cast<std::int64_t>(tokens.size());
    const NoGradients evaluation(context);
    const std::vector<float> logits = download(
        *backend, forward_logits(
                      model, context, recipe,
                      {1, count, upload(*backend, tokens, {count}), upload(*backend, positions, {count}), {}},
                      nullptr));
    double sum = 0;
    for (std::size_t i = begin; i < tokens.size(); ++i) {
      double denominator = 0;
      for (std::size_t v = 0; v < 257; ++v)
        denominator += std::exp(static_cast<double>(logits[(i - 1) * 257 + v]));
      sum += std::log(denominator) - logits[(i - 1) * 257 + static_cast<std::size_t>(tokens[i])];
    }
    return sum;
  }

  TemporaryFolder folder;
  std::shared_ptr<Backend> backend = make_backend("cpu", 2);
  LanguageModel model{backend, micro_config(folder).model, 3};
  Context context{*backend};
  std::optional<Recipe> recipe = DelayedScaling{};
};

TEST_F(MultipleChoiceTest, ScoresAreThoseOfEachChoiceAlone) {
  const ChoiceQuestion question{{256, 10, 20, 30}, {{40}, {50, 60, 70}, {41, 42}}, 0};
  const auto scores = score_choices(model, context, recipe, question);
  ASSERT_EQ(scores.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<std::int32_t> tokens = question.context;
    tokens.insert(tokens.end(), question.choices[i].begin(), question.choices[i].end());
    EXPECT_EQ(scores[i].tokens, static_cast<std::int64_t>(question.choices[i].size()));
    EXPECT_NEAR(scores[i].nats, nats(tokens, 4), 1e-4 * scores[i].nats) << i;
  }
}

TEST_F(MultipleChoiceTest, AnAccuracyCountsTheLikeliestAndTheLikeliestPerToken) {
  // By the scores, so that every way of being right and wrong occurs.
  ChoiceQuestion question{{256, 10, 20, 30}, {{40}, {50, 60, 70}}, 0};
  const auto scores = score_choices(model, context, recipe, question);
  // An untrained model is nearly indifferent: the longer choice is less likely.
  ASSERT_LT(scores[0].nats, scores[1].nats);
  const bool longer_is_better_per_token = scores[1].mean() < scores[0].mean();
  std::vector<ChoiceQuestion> questions(3, question);
  questions[2].label = 1;
  const ChoiceAccuracy accuracy = evaluate_choices(model, context, recipe, questions);
  EXPECT_EQ(accuracy.questions, 3);
  EXPECT_EQ(accuracy.right, 2);
  EXPECT_EQ(accuracy.right_norm, longer_is_better_per_token ? 1 : 2);
  EXPECT_DOUBLE_EQ(accuracy.acc(), 2.0 / 3);
}

TEST_F(MultipleChoiceTest, AContextThatDoesNotFitLosesItsBeginning) {
  ChoiceQuestion question{std::vector<std::int32_t>(200, 7), {{40, 41}, {50}}, 0};
  for (std::size_t i = 0; i < 200; ++i) question.context[i] = static_cast<std::int32_t>(i);
  const auto scores = score_choices(model, context, recipe, question);
  // 64 positions: 63 of the context, and one for the first token of the longest choice.
  std::vector<std::int32_t> tokens(question.context.end() - 63, question.context.end());
  tokens.insert(tokens.end(), {40, 41});
  const std::vector<std::int32_t> inputs(tokens.begin(), tokens.end() - 1);
  EXPECT_EQ(inputs.size(), 64u);
  tokens.pop_back();
  const double first = nats(tokens, 63);
  EXPECT_GT(scores[0].nats, first);
  const ChoiceQuestion fitting{std::vector<std::int32_t>(question.context.end() - 63, question.context.end()),
                               question.choices, 0};
  EXPECT_EQ(score_choices(model, context, recipe, fitting)[0].nats, scores[0].nats);
  question.choices[0].assign(65, 1);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { score_choices(model, context, recipe, question); }),
               "model.context"));
}

}  // namespace
}  // namespace quaver
