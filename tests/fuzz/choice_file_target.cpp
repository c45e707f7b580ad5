/// Any bytes as a file of questions: refused as bad data, or accepted, and then every question can be asked. A first byte of 1
/// stands for a header of llm.c's form without its many zeros: the four numbers that follow are the header's first. Any other
/// first byte is left out, and the rest is the file.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "fuzz/target.h"
#include "quaver/error.h"
#include "text/choice_file.h"

namespace {

constexpr std::int64_t kVocab = 300;
constexpr std::size_t kNumbers = 4 * 4, kHeader = 256 * 4;

std::string file_of(std::string_view input) {
  const bool short_header = !input.empty() && input.front() == 1;
  input.remove_prefix(std::min<std::size_t>(1, input.size()));
  std::string file(input);
  if (short_header && file.size() >= kNumbers) file.insert(kNumbers, kHeader - kNumbers, '\0');
  return file;
}

void check(const std::vector<std::int32_t>& tokens) {
  if (tokens.empty()) std::abort();
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= kVocab) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto tokenizer = quaver::load_tokenizer("bytes");
  const std::string file = file_of({reinterpret_cast<const char*>(data), size});
  try {
    const auto questions = quaver::parse_choices(file, "input", tokenizer.get(), kVocab);
    if (questions.empty()) std::abort();
    for (const quaver::ChoiceQuestion& question : questions) {
      check(question.context);
      if (question.choices.size() < 2 || question.label >= question.choices.size()) std::abort();
      for (const auto& choice : question.choices) check(choice);
    }
  } catch (const quaver::Error& error) {
    if (error.kind() != quaver::ErrorKind::data) std::abort();
  }
  return 0;
}
