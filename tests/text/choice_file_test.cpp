#include "text/choice_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

/// A file as llm.c's Python writes it.
std::string token_file(const std::vector<ChoiceQuestion>& questions) {
  std::vector<std::int32_t> header(256);
  header[0] = 20240522, header[1] = 1, header[2] = static_cast<std::int32_t>(questions.size());
  std::vector<std::uint16_t> stream;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const std::size_t begin = stream.size();
    const auto add = [&](std::size_t value) { stream.push_back(static_cast<std::uint16_t>(value)); };
    const auto add_tokens = [&](const std::vector<std::int32_t>& tokens) {
      add(tokens.size());
      for (const std::int32_t token : tokens) add(static_cast<std::size_t>(token));
    };
    for (const std::size_t value :
         {std::size_t{65535}, std::size_t{0}, i, questions[i].label, questions[i].choices.size()})
      add(value);
    add_tokens(questions[i].context);
    for (const auto& choice : questions[i].choices) add_tokens(choice);
    const auto bytes = static_cast<std::int32_t>((stream.size() - begin) * 2);
    stream[begin + 1] = static_cast<std::uint16_t>(bytes);
    header[3] = std::max(header[3], bytes);
  }
  std::string content(header.size() * 4 + stream.size() * 2, '\0');
  std::memcpy(content.data(), header.data(), header.size() * 4);
  std::memcpy(content.data() + header.size() * 4, stream.data(), stream.size() * 2);
  return content;
}

std::vector<ChoiceQuestion> parse(const std::string& content, std::int64_t vocab = 100) {
  return parse_choice_tokens(std::as_bytes(std::span(content)), "hs.bin", vocab);
}

std::vector<ChoiceQuestion> two_questions() {
  return {{{5, 6, 7}, {{1}, {2, 3}, {4, 4, 4}, {9}}, 2}, {{8}, {{1, 1}, {2}, {3}, {0}}, 0}};
}

TEST(ChoiceFile, ReadsTheFormOfLlmC) {
  const auto questions = parse(token_file(two_questions()));
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].context, (std::vector<std::int32_t>{5, 6, 7}));
  EXPECT_EQ(questions[0].choices[2], (std::vector<std::int32_t>{4, 4, 4}));
  EXPECT_EQ(questions[0].label, 2u);
  EXPECT_EQ(questions[1].choices.size(), 4u);
  EXPECT_EQ(questions[1].label, 0u);
}

TEST(ChoiceFile, EveryTruncationAndAnyLongerFileIsRefused) {
  const std::string whole = token_file(two_questions());
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(parse(whole.substr(0, size)), Error) << size;
  EXPECT_THROW(parse(whole + '\0'), Error);
}

TEST(ChoiceFile, SaysWhatIsWrong) {
  const auto refusal = [](const std::string& content, std::int64_t vocab = 100) {
    return error_message(ErrorKind::data, [&] { parse(content, vocab); });
  };
  const auto changed = [](std::size_t at, std::uint16_t value) {
    std::string content = token_file(two_questions());
    std::memcpy(content.data() + at, &value, 2);
    return content;
  };
  EXPECT_TRUE(contains(refusal("short"), "header"));
  EXPECT_TRUE(contains(refusal(changed(0, 1)), "magic"));
  EXPECT_TRUE(contains(refusal(changed(4, 2)), "version"));
  EXPECT_TRUE(contains(refusal(changed(8, 0)), "1 to 65535 questions"));
  EXPECT_TRUE(contains(refusal(changed(12, 9)), "longest"));
  EXPECT_TRUE(contains(refusal(changed(400, 9)), "header is not 0"));
  EXPECT_TRUE(contains(refusal(changed(1024, 9)), "its start"));
  EXPECT_TRUE(contains(refusal(changed(1026, 9)), "says that it has 9 bytes"));
  EXPECT_TRUE(contains(refusal(changed(1028, 9)), "its number"));
  EXPECT_TRUE(contains(refusal(changed(1030, 4)), "label 4 of 4"));
  EXPECT_TRUE(contains(refusal(changed(1032, 1)), "number of choices"));
  EXPECT_TRUE(contains(refusal(changed(1034, 0)), "length of its context"));
  EXPECT_TRUE(contains(refusal(changed(1036, 100)), "expected 0 to 99, found 100"));
  EXPECT_TRUE(contains(refusal(token_file(two_questions()), 8), "hs.bin: question 0"));
}

TEST(ChoiceFile, ReadsJsonLines) {
  const auto tokenizer = load_tokenizer("bytes");
  const TemporaryFolder folder;
  const std::string path =
      folder.write("q.jsonl",
                   "{\"context\": \"ab\", \"choices\": [\"c\", \" d\"], \"label\": 1}\n\n"
                   "{\"ctx\": \"x\", \"endings\": [\"y\", \"z\", \"w\"], \"label\": 0, \"ind\": 7}\n");
  const auto questions = read_choice_file(path, tokenizer.get(), 257);
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].context, (std::vector<std::int32_t>{256, 'a', 'b'}));
  EXPECT_EQ(questions[0].choices[1], (std::vector<std::int32_t>{' ', 'd'}));
  EXPECT_EQ(questions[0].label, 1u);
  EXPECT_EQ(questions[1].choices[0], (std::vector<std::int32_t>{' ', 'y'}));
  const std::string tokens = folder.write("q.bin", token_file(two_questions()));
  EXPECT_EQ(read_choice_file(tokens, nullptr, 100).size(), 2u);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::usage, [&] { read_choice_file(path, nullptr, 257); }), "tokenizer"));
  for (const auto& [line, part] : std::vector<std::pair<std::string, std::string>>{
           {"{", "JSON object"},
           {"{}", "context: it is missing"},
           {R"({"context": 1, "choices": ["a", "b"], "label": 0})", "context: expected a string"},
           {R"({"context": "a", "choices": ["a"], "label": 0})", "at least 2"},
           {R"({"context": "a", "choices": ["a", ""], "label": 0})", "a choice is empty"},
           {R"({"context": "a", "choices": ["a", "b"], "label": 2})", "label: expected"},
           {R"({"context": "a", "choices": ["a", "b"], "label": "1"})", "label: expected"}}) {
    const std::string message =
        error_message(ErrorKind::data, [&, &bad = line] { parse_choice_lines("\n" + bad, "q", *tokenizer); });
    EXPECT_TRUE(contains(message, "q:2: ") && contains(message, part)) << message;
  }
}

}  // namespace
}  // namespace quaver
