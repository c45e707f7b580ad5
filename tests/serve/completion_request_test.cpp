#include "serve/completion_request.h"

#include <gtest/gtest.h>

#include "support/errors.h"

namespace quaver {
namespace {

const Tokenizer& bytes() {
  static const std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("bytes");
  return *tokenizer;
}

CompletionRequest parse(std::string_view body) {
  return parse_completion_request(body, bytes(), {.context = 64, .max_tokens = 32, .max_choices = 8});
}

std::string refusal(std::string_view body) {
  return error_message(ErrorKind::usage, [&] { parse(body); });
}

TEST(CompletionRequest, HasTheDefaultsOfTheForm) {
  const CompletionRequest request = parse(R"({"prompt": "ab"})");
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(request.prompts[0].tokens, (std::vector<std::int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(request.prompts[0].echo_begin, 1u);
  EXPECT_EQ(request.max_tokens, 16);
  EXPECT_EQ(request.sampling.temperature, 1);
  EXPECT_EQ(request.sampling.top_p, 1);
  EXPECT_FALSE(request.echo || request.stream || request.logprobs);
  EXPECT_NE(parse(R"({"prompt": "ab"})").seed, request.seed) << "random unless given";
}

TEST(CompletionRequest, ReadsEveryMember) {
  const CompletionRequest request = parse(
      R"({"model": "m", "prompt": [[1, 2], [3]], "n": 2, "max_tokens": 3, "temperature": 0.5, "top_p": 0.25, "top_k": 7,
          "seed": 11, "stop": ["x", "yz"], "logprobs": 2, "echo": true, "stream": true, "user": "me", "best_of": 2,
          "stream_options": {"include_usage": true}, "repetition_penalty": 1.5, "suffix": null, "logit_bias": {},
          "presence_penalty": 0, "frequency_penalty": 0.0})");
  EXPECT_EQ(request.model, "m");
  ASSERT_EQ(request.prompts.size(), 2u);
  EXPECT_EQ(request.prompts[0].tokens, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(request.prompts[0].echo_begin, 0u);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_TRUE(request.stream_usage);
  const auto texts = request.texts(bytes());
  ASSERT_EQ(texts.size(), 4u);
  EXPECT_EQ(texts[1].prompt, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(texts[1].stream, 1u);
  EXPECT_EQ(texts[2].prompt, (std::vector<std::int32_t>{3}));
  for (const GenerationRequest& text : texts) {
    EXPECT_EQ(text.max_tokens, 3);
    EXPECT_EQ(text.seed, 11u);
    EXPECT_EQ(text.sampling.top_k, 7);
    EXPECT_EQ(text.sampling.top_p, 0.25f);
    EXPECT_EQ(text.sampling.repetition_penalty, 1.5f);
    EXPECT_TRUE(text.score_prompt);
    EXPECT_EQ(text.top_scores, 2);
    EXPECT_EQ(text.end_token, 256);
  }
}

TEST(CompletionRequest, PromptsHaveTheirForms) {
  EXPECT_EQ(parse(R"({"prompt": ""})").prompts[0].tokens, (std::vector<std::int32_t>{256}));
  EXPECT_EQ(parse(R"({"prompt": ["a", "bc", ""]})").prompts.size(), 3u);
  EXPECT_EQ(parse(R"({"prompt": ["a", [5]]})").prompts[1].tokens, (std::vector<std::int32_t>{5}));
  EXPECT_EQ(parse(R"({"prompt": [5, 6]})").prompts.size(), 1u);
}

TEST(CompletionRequest, SaysWhatIsWrong) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"", "not JSON"},
      {"{\"prompt\": \"a\"", "not JSON"},
      {"{\"prompt\": \"\xFF\"}", "not JSON"},
      {"[1]", "JSON object"},
      {"{}", "prompt: it is missing"},
      {R"({"prompt": null})", "prompt: it is missing"},
      {R"({"prompt": 5})", "prompt: expected"},
      {R"({"prompt": []})", "prompt: expected at least one token"},
      {R"({"prompt": [[]]})", "prompt: expected at least one token"},
      {R"({"prompt": [1, "a"]})", "prompt: expected token ids"},
      {R"({"prompt": ["a", 1]})", "prompt: expected a string"},
      {R"({"prompt": [257]})", "[0, 257)"},
      {R"({"prompt": [-1]})", "-1"},
      {R"({"prompt": [1.5]})", "1.5"},
      {R"({"prompt": [18446744073709551615]})", "18446744073709551615"},
      {R"({"prompt": ["","","","","","","","",""]})", "9 prompts"},
      {R"({"prompt": ["",""], "n": 5})", "n: 2 prompts with 5 choices"},
      {R"({"prompt": "a", "n": 0})", "n: expected an integer in [1, 8]"},
      {R"({"prompt": "a", "max_tokens": -1})", "max_tokens"},
      {R"({"prompt": "a", "max_tokens": 33})", "[0, 32]"},
      {R"({"prompt": "a", "max_tokens": 1e3})", "max_tokens"},
      {R"({"prompt": "a", "max_tokens": true})", "max_tokens"},
      {R"({"prompt": "a", "temperature": "hot"})", "temperature: expected a number"},
      {R"({"prompt": "a", "temperature": -0.1})", "temperature"},
      {R"({"prompt": "a", "temperature": 1e999})", "not JSON"},
      {R"({"prompt": "a", "top_p": 0})", "top_p"},
      {R"({"prompt": "a", "logprobs": 21})", "logprobs"},
      {R"({"prompt": "a", "logprobs": true})", "logprobs"},
      {R"({"prompt": "a", "echo": 1})", "echo"},
      {R"({"prompt": "a", "stop": 3})", "stop"},
      {R"({"prompt": "a", "stop": [1]})", "stop"},
      {R"({"prompt": "a", "stream_options": 1})", "stream_options"},
      {R"({"prompt": "a", "presence_penalty": 0.5})", "presence_penalty: only 0"},
      {R"({"prompt": "a", "best_of": 3})", "best_of"},
      {R"({"prompt": "a", "suffix": "x"})", "suffix"},
      {R"({"prompt": "a", "logit_bias": {"5": 1}})", "logit_bias"},
      {R"({"prompt": "a", "max_token": 3})", "did you mean \"max_tokens\"?"},
      {R"({"prompt": "a", "model": 3})", "model"},
  };
  for (const auto& [body, part] : cases)
    EXPECT_TRUE(contains(refusal(body), part)) << body << ": " << refusal(body);
  const std::string long_prompt = R"({"max_tokens": 32, "prompt": ")" + std::string(32, 'a') + "\"}";
  EXPECT_TRUE(
      contains(refusal(long_prompt), "33 tokens and max_tokens = 32 exceed the model's context of 64"));
  EXPECT_TRUE(contains(refusal(R"({"prompt": "a", "stop": ")" + std::string(2000, 's') + "\"}"), "stop"));
}

TEST(CompletionRequest, DeepNestingIsNoProblem) {
  const std::string deep = R"({"prompt": )" + std::string(200000, '[') + std::string(200000, ']') + "}";
  EXPECT_TRUE(contains(refusal(deep), "prompt"));
}

}  // namespace
}  // namespace quaver
