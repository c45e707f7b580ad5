#include "generate/generator.h"

#include <gtest/gtest.h>

#include <map>

#include "support/errors.h"
#include "text/corpus.h"
#include "train/loss.h"
#include "train/training_support.h"

namespace quaver {
namespace {

SampleOptions sampling(std::int64_t tokens, float temperature, std::uint64_t seed = 5) {
  SampleOptions options;
  options.tokens = tokens;
  options.sampling.temperature = temperature;
  options.seed = seed;
  return options;
}

class GenerateTest : public testing::Test {
 protected:
  std::vector<std::string> texts(const std::vector<std::string>& prompts, const SampleOptions& options) {
    std::vector<std::string> all(prompts.size());
    std::vector<int> ends(prompts.size());
    results = generate(model, context, recipe, *tokenizer, prompts, options,
                       [&](std::size_t prompt, std::string_view text, bool finished) {
                         EXPECT_EQ(ends[prompt], 0);
                         all[prompt] += text;
                         ends[prompt] += finished;
                       });
    for (const int end : ends) EXPECT_EQ(end, 1);
    return all;
  }
  std::string text(const std::string& prompt, const SampleOptions& options) {
    return texts({prompt}, options).front();
  }
  /// Logits [tokens, vocab] of a forward pass over the whole text.
  std::vector<float> whole_logits(const std::vector<std::int32_t>& tokens) {
    std::vector<std::int32_t> positions(tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
    const auto count = static_cast<std::int64_t>(tokens.size());
    const NoGradients evaluation(context);
    return download(
        *backend, forward_logits(
                      model, context, recipe,
                      {1, count, upload(*backend, tokens, {count}), upload(*backend, positions, {count}), {}},
                      nullptr));
  }
  std::span<const float> row(const std::vector<float>& logits, std::size_t index) const {
    const auto vocab = static_cast<std::size_t>(model.config().vocab);
    return std::span(logits).subspan(index * vocab, vocab);
  }

  TemporaryFolder folder;
  std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("bytes");
  std::shared_ptr<Backend> backend = make_backend("cpu", 2);
  LanguageModel model{backend, micro_config(folder).model, 3};
  Context context{*backend};
  std::optional<Recipe> recipe = DelayedScaling{};
  std::vector<GeneratedText> results;
};

TEST_F(GenerateTest, IsAFunctionOfTheSeed) {
  const std::string first = text("abc", sampling(40, 1));
  EXPECT_EQ(results.front().tokens, 40);
  EXPECT_FALSE(results.front().ended);
  EXPECT_EQ(text("abc", sampling(40, 1)), first);
  EXPECT_NE(text("abc", sampling(40, 1, 6)), first);
  EXPECT_NE(text("abd", sampling(40, 1)), first);
}

TEST_F(GenerateTest, GreedyTextIsThatOfAForwardWithoutCache) {
  const std::string prompt = "hello", generated = text(prompt, sampling(20, 0));
  const std::vector<std::int32_t> tokens = prompt_tokens(*tokenizer, prompt + generated);
  ASSERT_EQ(tokens.size(), 26u);
  const std::vector<float> logits = whole_logits(tokens);
  for (std::size_t i = prompt.size(); i + 1 < tokens.size(); ++i)
    EXPECT_EQ(draw_token(row(logits, i), {.temperature = 0}, 0), tokens[i + 1]) << i;
}

TEST_F(GenerateTest, ContinuesBeyondTheContext) {
  text("abc", sampling(200, 0));
  EXPECT_EQ(results.front().tokens, 200);
  text(std::string(500, 'x'), sampling(3, 0));
  EXPECT_EQ(results.front().tokens, 3);
}

TEST_F(GenerateTest, AnswersNothingWhenAskedForNothing) {
  EXPECT_EQ(text("abc", sampling(0, 1)), "");
}

/// Prompts of many lengths, more of them than places: they join and leave while others go on, and windows slide.
TEST_F(GenerateTest, ABatchGivesTheBitsOfEachPromptAlone) {
  for (const bool fp8 : {true, false}) {
    if (!fp8) recipe.reset();
    std::vector<std::string> prompts, alone;
    for (int i = 0; i < 9; ++i) prompts.push_back(std::string(static_cast<std::size_t>(i * i), 'q') + "ab");
    SampleOptions options = sampling(30, 1);
    options.sampling.repetition_penalty = 1.3f;
    options.sampling.top_p = 0.9f;
    options.stop = {"e"};
    for (const std::string& prompt : prompts) alone.push_back(text(prompt, options));
    options.max_batch = 4;
    EXPECT_EQ(texts(prompts, options), alone);
  }
}

TEST_F(GenerateTest, AStopStringEndsTheText) {
  const std::string whole = text("abc", sampling(60, 1));
  SampleOptions options = sampling(60, 1);
  options.stop = {whole.substr(10, 3)};
  const std::size_t end = whole.find(options.stop.front());
  EXPECT_EQ(text("abc", options), whole.substr(0, end));
  EXPECT_TRUE(results.front().ended);
  EXPECT_EQ(results.front().tokens, static_cast<std::int64_t>(end) + 3);
}

TEST_F(GenerateTest, PromptsAndTokensAreScored) {
  BatchGenerator generator(model, context, recipe, {.max_texts = 2});
  GenerationRequest request;
  for (int i = 0; i < 40; ++i) request.prompt.push_back((i * 37) % 257);
  request.max_tokens = 5;
  request.score_prompt = true;
  request.top_scores = 3;
  GenerationRequest other = request;
  other.prompt.resize(7);
  generator.join(request);
  std::vector<PositionScores> scores;
  std::vector<std::int32_t> tokens = request.prompt;
  const auto step = [&] {
    for (const GenerationEvent& event : generator.step()) {
      if (event.id != 1) continue;
      scores.insert(scores.end(), event.prompt_scores.begin(), event.prompt_scores.end());
      if (event.token) tokens.push_back(*event.token), scores.push_back(*event.token_score);
    }
  };
  step();
  generator.join(other);
  while (generator.texts() > 0) step();
  ASSERT_EQ(scores.size(), 44u);
  const std::vector<float> logits = whole_logits(tokens);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const PositionScores expected = score(row(logits, i), tokens[i + 1], 3);
    EXPECT_EQ(scores[i].token.token, tokens[i + 1]);
    EXPECT_EQ(scores[i].token.logprob, expected.token.logprob) << i;
    ASSERT_EQ(scores[i].top.size(), 3u);
    for (std::size_t k = 0; k < 3; ++k) EXPECT_EQ(scores[i].top[k].token, expected.top[k].token);
  }
}

TEST_F(GenerateTest, ScoringAloneDrawsNothing) {
  BatchGenerator generator(model, context, recipe, {});
  GenerationRequest request;
  request.prompt = {1, 2, 3};
  request.score_prompt = true;
  generator.join(request);
  EXPECT_TRUE(generator.full());
  const std::vector<GenerationEvent> events = generator.step();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].prompt_scores.size(), 2u);
  EXPECT_FALSE(events[0].token);
  EXPECT_EQ(events[0].finish, Finish::length);
  EXPECT_TRUE(generator.step().empty());
}

TEST_F(GenerateTest, ATextThatFailsLeavesTheOthers) {
  // Token 7's embedding is not finite; only texts that hold it see that.
  ModelConfig untied = micro_config(folder).model;
  untied.tie_embeddings = false;
  LanguageModel poisoned(backend, untied, 3);
  struct Find : ModuleVisitor {
    void parameter(const std::string& name, Parameter& parameter) override {
      if (name == "embedding.weight") embedding = &parameter;
    }
    Parameter* embedding = nullptr;
  } find;
  poisoned.visit("", find);
  backend->fill(find.embedding->value.slice(7, 1), std::nan(""));
  ++find.embedding->version;
  BatchGenerator generator(poisoned, context, std::nullopt, {.max_texts = 2});
  GenerationRequest good, bad;
  good.prompt = {1, 2, 3}, bad.prompt = {1, 7, 3};
  good.max_tokens = bad.max_tokens = 3;
  const std::uint64_t failing = generator.join(bad), going = generator.join(good);
  std::map<std::uint64_t, Finish> ends;
  for (int i = 0; i < 5 && generator.texts() > 0; ++i) {
    for (const GenerationEvent& event : generator.step()) ends[event.id] = event.finish;
  }
  EXPECT_EQ(ends[failing], Finish::failed);
  EXPECT_NE(ends[going], Finish::failed);
}

TEST_F(GenerateTest, RequestsAreChecked) {
  BatchGenerator generator(model, context, recipe, {});
  GenerationRequest request;
  error_message(ErrorKind::usage, [&] { generator.join(request); });
  request.prompt = {999};
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { generator.join(request); }), "999"));
  request.prompt.assign(65, 1);
  request.score_prompt = true;
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { generator.join(request); }), "model.context"));
  request.prompt = {1};
  generator.join(request);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { generator.join(request); }), "already"));
}

}  // namespace
}  // namespace quaver
