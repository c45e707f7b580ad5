#include "text/choice_file.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/mapped_file.h"

namespace quaver {
namespace {

constexpr std::int32_t kMagic = 20240522, kVersion = 1;
constexpr std::size_t kHeaderIntegers = 256, kHeaderBytes = kHeaderIntegers * 4;
constexpr std::uint16_t kStart = 65535;

/// Reads 16-bit numbers in turn; throws where there is none.
class Numbers {
 public:
  Numbers(std::span<const std::byte> content, std::string name) : content_(content), name_(std::move(name)) {}

  [[noreturn]] void refuse(const std::string& reason) const {
    fail(ErrorKind::data, "{}: question {}: {}", name_, question, reason);
  }
  std::uint16_t next(std::string_view what) {
    if (content_.size() - at_ < 2) refuse(fmt::format("ends before {}; it may be cut off", what));
    std::uint16_t value = 0;
    std::memcpy(&value, content_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  /// Throws unless it is in [low, high].
  std::uint16_t next_in(std::string_view what, std::size_t low, std::size_t high) {
    const std::uint16_t found = next(what);
    if (found < low || found > high)
      refuse(fmt::format("{}: expected {} to {}, found {}", what, low, high, found));
    return found;
  }
  std::size_t position() const { return at_; }
  bool at_end() const { return at_ == content_.size(); }

  std::size_t question = 0;

 private:
  std::span<const std::byte> content_;
  std::string name_;
  std::size_t at_ = 0;
};

std::vector<std::int32_t> read_tokens(Numbers& numbers, std::string_view what, std::int64_t vocab) {
  std::vector<std::int32_t> tokens(numbers.next_in(what, 1, kStart - 1));
  const auto highest = static_cast<std::size_t>(std::min<std::int64_t>(vocab, kStart) - 1);
  for (std::int32_t& token : tokens) token = numbers.next_in("a token", 0, highest);
  return tokens;
}

/// `longest`: raised to the question's bytes.
ChoiceQuestion read_question(Numbers& numbers, std::int64_t vocab, std::size_t& longest) {
  const std::size_t begin = numbers.position();
  numbers.next_in("its start", kStart, kStart);
  const std::size_t bytes = numbers.next("its size");
  numbers.next_in("its number", numbers.question, numbers.question);
  ChoiceQuestion question;
  question.label = numbers.next("its label");
  question.choices.resize(numbers.next_in("its number of choices", 2, kStart - 1));
  if (question.label >= question.choices.size()) {
    numbers.refuse(fmt::format("label {} of {} choices", question.label, question.choices.size()));
  }
  question.context = read_tokens(numbers, "the length of its context", vocab);
  for (auto& choice : question.choices) choice = read_tokens(numbers, "the length of a choice", vocab);
  const std::size_t read = numbers.position() - begin;
  if (bytes != read) numbers.refuse(fmt::format("says that it has {} bytes, found {}", bytes, read));
  longest = std::max(longest, read);
  return question;
}

using nlohmann::json;

std::string text_of(const json& value, const char* what) {
  if (!value.is_string()) fail(ErrorKind::data, "{}: expected a string, found {}", what, value.type_name());
  return value.get<std::string>();
}

ChoiceQuestion parse_line(std::string_view line, TextEncoder& encoder, std::int32_t document_token) {
  const json object = json::parse(line, nullptr, false);
  if (!object.is_object()) fail(ErrorKind::data, "expected a JSON object");
  const bool hellaswag = object.contains("ctx");
  const char *context = hellaswag ? "ctx" : "context", *choices = hellaswag ? "endings" : "choices";
  for (const char* name : {context, choices, "label"}) {
    if (!object.contains(name)) fail(ErrorKind::data, "{}: it is missing", name);
  }
  ChoiceQuestion question;
  question.context.push_back(document_token);
  encoder.encode(text_of(object[context], context), question.context);
  if (!object[choices].is_array() || object[choices].size() < 2)
    fail(ErrorKind::data, "{}: expected an array of at least 2 strings", choices);
  for (const json& choice : object[choices]) {
    encoder.encode((hellaswag ? " " : "") + text_of(choice, choices), question.choices.emplace_back());
    if (question.choices.back().empty()) fail(ErrorKind::data, "{}: a choice is empty", choices);
  }
  const json& label = object["label"];
  if (!label.is_number_unsigned() || label.get<std::uint64_t>() >= question.choices.size())
    fail(ErrorKind::data, "label: expected an integer in [0, {}), found {}", question.choices.size(),
         label.dump(-1, ' ', false, json::error_handler_t::replace));
  question.label = label.get<std::size_t>();
  return question;
}

}  // namespace

std::vector<ChoiceQuestion> parse_choice_tokens(std::span<const std::byte> content, const std::string& name,
                                                std::int64_t vocab) {
  if (content.size() < kHeaderBytes)
    fail(ErrorKind::data, "{}: {} bytes; the header alone has {}", name, content.size(), kHeaderBytes);
  std::vector<std::int32_t> header(kHeaderIntegers);
  std::memcpy(header.data(), content.data(), kHeaderBytes);
  if (header[0] != kMagic || header[1] != kVersion)
    fail(ErrorKind::data, "{}: expected magic number {} and version {}, found {} and {}", name, kMagic,
         kVersion, header[0], header[1]);
  // Questions are numbered with 16 bits.
  if (header[2] < 1 || header[2] >= 1 << 16)
    fail(ErrorKind::data, "{}: expected 1 to 65535 questions, found {}", name, header[2]);
  if (std::any_of(header.begin() + 4, header.end(), [](std::int32_t value) { return value != 0; }))
    fail(ErrorKind::data, "{}: the header is not 0 behind its fourth number", name);
  Numbers numbers(content.subspan(kHeaderBytes), name);
  std::vector<ChoiceQuestion> questions;
  std::size_t longest = 0;
  for (; numbers.question < static_cast<std::size_t>(header[2]); ++numbers.question)
    questions.push_back(read_question(numbers, vocab, longest));
  if (!numbers.at_end()) fail(ErrorKind::data, "{}: bytes follow the last question", name);
  if (static_cast<std::size_t>(header[3]) != longest)
    fail(ErrorKind::data, "{}: the header says that the longest question has {} bytes, found {}", name,
         header[3], longest);
  return questions;
}

std::vector<ChoiceQuestion> parse_choice_lines(std::string_view content, const std::string& name,
                                               const Tokenizer& tokenizer) {
  const auto encoder = tokenizer.make_encoder();
  std::vector<ChoiceQuestion> questions;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = content.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      questions.push_back(parse_line(line, *encoder, tokenizer.document_token()));
    } catch (const Error& error) {
      fail(error.kind(), "{}:{}: {}", name, number, error.what());
    }
  }
  if (questions.empty()) fail(ErrorKind::data, "{}: holds no question", name);
  return questions;
}

std::vector<ChoiceQuestion> parse_choices(std::string_view content, const std::string& name,
                                          const Tokenizer* tokenizer, std::int64_t vocab) {
  const std::size_t first = content.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || content[first] != '{')
    return parse_choice_tokens(std::as_bytes(std::span(content)), name, vocab);
  require(tokenizer != nullptr,
          "{}: holds text, and the model's tokenizer is not known. Hint: data.tokenizer=PATH", name);
  require(tokenizer->vocab() <= vocab, "{}: the tokenizer has {} ids, the model {}", name, tokenizer->vocab(),
          vocab);
  return parse_choice_lines(content, name, *tokenizer);
}

std::vector<ChoiceQuestion> read_choice_file(const std::string& path, const Tokenizer* tokenizer,
                                             std::int64_t vocab) {
  const MappedFile file(path);
  return parse_choices(file.text(), path, tokenizer, vocab);
}

}  // namespace quaver
