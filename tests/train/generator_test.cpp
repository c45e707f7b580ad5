#include "train/generator.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <set>

#include "support/errors.h"
#include "text/corpus.h"
#include "train/loss.h"
#include "training_support.h"

namespace quaver {
namespace {

TEST(DrawToken, ZeroTemperatureTakesTheLikeliestAndTheFirstOfEquals) {
  EXPECT_EQ(draw_token(std::vector<float>{1, 3, 2, 3}, 0, 0, 0.999f), 1);
}

TEST(DrawToken, FollowsTheDistribution) {
  const std::vector<float> logits = {0, std::log(3.0f)};  // shares 1/4 and 3/4; the likelier comes first
  EXPECT_EQ(draw_token(logits, 1, 0, 0.0f), 1);
  EXPECT_EQ(draw_token(logits, 1, 0, 0.74f), 1);
  EXPECT_EQ(draw_token(logits, 1, 0, 0.76f), 0);
  EXPECT_EQ(draw_token(logits, 1, 0, 0.99999994f), 0);
}

TEST(DrawToken, TemperatureDividesLogits) {
  const std::vector<float> logits = {0, 2 * std::log(3.0f)};
  EXPECT_EQ(draw_token(logits, 2, 0, 0.74f), 1);
  EXPECT_EQ(draw_token(logits, 2, 0, 0.76f), 0);
}

TEST(DrawToken, TopKLeavesTheRestOut) {
  const std::vector<float> logits = {1, 1, 1, 2};
  std::set<std::int32_t> drawn;
  for (int i = 0; i < 100; ++i) drawn.insert(draw_token(logits, 100, 2, static_cast<float>(i) / 100));
  EXPECT_EQ(drawn, (std::set<std::int32_t>{0, 3}));
  EXPECT_EQ(draw_token(logits, 100, 99, 0.999f), 2);
}

TEST(DrawToken, RefusesLogitsThatAreNotFinite) {
  const std::vector<float> logits = {0, std::numeric_limits<float>::quiet_NaN()};
  error_message(ErrorKind::non_finite, [&] { draw_token(logits, 1, 0, 0.5f); });
}

class GenerateTest : public testing::Test {
 protected:
  std::string text(const std::string& prompt, SampleOptions options) {
    std::string result;
    const std::int64_t count = generate(model, context, recipe, *load_tokenizer("bytes"), prompt, options,
                                        [&](std::string_view bytes) { result += bytes; });
    EXPECT_EQ(count, static_cast<std::int64_t>(result.size()));
    return result;
  }

  TemporaryFolder folder;
  std::shared_ptr<Backend> backend = make_backend("cpu", 2);
  LanguageModel model{backend, micro_config(folder).model, 3};
  Context context{*backend};
  std::optional<Recipe> recipe = DelayedScaling{};
};

TEST_F(GenerateTest, IsAFunctionOfTheSeed) {
  const std::string first = text("abc", {40, 1, 0, 5});
  EXPECT_EQ(text("abc", {40, 1, 0, 5}), first);
  EXPECT_NE(text("abc", {40, 1, 0, 6}), first);
  EXPECT_NE(text("abd", {40, 1, 0, 5}), first);
}

TEST_F(GenerateTest, GreedyTextIsThatOfAForwardWithoutCache) {
  const std::string prompt = "hello", generated = text(prompt, {20, 0, 0, 1});
  std::vector<std::int32_t> tokens = {kDocumentToken};
  for (const char byte : prompt + generated) tokens.push_back(static_cast<unsigned char>(byte));
  std::vector<std::int32_t> positions(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  const auto count = static_cast<std::int64_t>(tokens.size());
  const NoGradients evaluation(context);
  const Tensor logits = forward_logits(
      model, context, recipe,
      {1, count, upload(*backend, tokens, {count}), upload(*backend, positions, {count}), {}}, nullptr);
  for (std::size_t i = prompt.size(); i + 1 < tokens.size(); ++i) {
    const auto row = download(*backend, logits.slice(static_cast<std::int64_t>(i), 1));
    EXPECT_EQ(draw_token(row, 0, 0, 0), tokens[i + 1]) << i;
  }
}

TEST_F(GenerateTest, ContinuesBeyondTheContext) {
  EXPECT_EQ(text("abc", {200, 1, 1, 5}).size(), 200u);
  EXPECT_EQ(text(std::string(500, 'x'), {3, 0, 0, 5}).size(), 3u);
}

TEST_F(GenerateTest, AnswersNothingWhenAskedForNothing) {
  EXPECT_EQ(text("abc", {0, 1, 0, 5}), "");
}

}  // namespace
}  // namespace quaver
