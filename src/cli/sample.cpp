#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/files.h"
#include "cli/commands.h"
#include "generate/generator.h"
#include "interop/open_model.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "train/run_precision.h"

namespace quaver::cli {
namespace {

/// Prints texts in the order of their prompts: the first unfinished one as it comes, the others when it is their turn.
class Printer {
 public:
  explicit Printer(const std::vector<std::string>& prompts) : texts_(prompts), finished_(prompts.size()) {
    write(texts_.front());
  }

  void append(std::size_t prompt, std::string_view text, bool finished) {
    texts_[prompt] += text;
    if (finished) finished_[prompt] = true;
    if (prompt != current_) return;
    write(text);
    while (current_ < texts_.size() && finished_[current_]) {
      ++current_;
      write(current_ == texts_.size() ? "\n" : "\n\n" + texts_[current_]);
    }
  }

 private:
  static void write(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  std::vector<std::string> texts_;  // each after its prompt
  std::vector<bool> finished_;
  std::size_t current_ = 0;
};

/// A line of a prompt file: text, or in a .jsonl file a string or an object with the member `prompt`.
std::string parse_prompt(const std::string& line, const std::string& file, std::size_t number) {
  if (!file.ends_with(".jsonl")) return line;
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (json.is_string()) return json.get<std::string>();
  if (json.is_object() && json.contains("prompt") && json["prompt"].is_string())
    return json["prompt"].get<std::string>();
  fail(ErrorKind::data, "{}:{}: expected a JSON string, or an object with the string \"prompt\"", file,
       number);
}

std::vector<std::string> prompts_of(const SampleArguments& arguments) {
  std::vector<std::string> prompts = arguments.prompts;
  if (!arguments.prompt_file.empty()) {
    const std::string text = read_file(arguments.prompt_file);
    std::size_t number = 0;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      std::string line = text.substr(begin, end - begin);
      begin = end + 1;
      ++number;
      if (line.ends_with('\r')) line.pop_back();
      if (!line.empty()) prompts.push_back(parse_prompt(line, arguments.prompt_file, number));
    }
    require(!prompts.empty(), "--prompt-file: {} holds no prompt", arguments.prompt_file);
  }
  if (prompts.empty()) prompts.emplace_back();
  return prompts;
}

SampleOptions options_of(const SampleArguments& arguments) {
  SampleOptions options;
  options.tokens = arguments.tokens;
  options.sampling = arguments.sampling;
  options.seed = arguments.seed;
  options.stop = arguments.stop;
  options.max_batch = arguments.batch;
  validate(options.sampling, "sample: ");
  return options;
}

}  // namespace

int sample(const SampleArguments& arguments) {
  const std::vector<std::string> prompts = prompts_of(arguments);
  const SampleOptions options = options_of(arguments);
  const LoadedRun run = open_model(arguments.run, arguments.overrides);
  const auto tokenizer = load_tokenizer(run.config.data);
  require(tokenizer != nullptr, "sample: the tokenizer of {} is not known. Hint: data.tokenizer=PATH",
          arguments.run);
  Context context(run.model->backend(), activation_dtype(run.config.precision));
  const auto recipe = run_recipe(run.config);
  if (!arguments.json) {
    Printer printer(prompts);
    generate(*run.model, context, recipe, *tokenizer, prompts, options,
             [&](std::size_t prompt, std::string_view text, bool finished) {
               printer.append(prompt, text, finished);
             });
    return 0;
  }
  std::vector<std::string> texts(prompts.size());
  const std::vector<GeneratedText> results =
      generate(*run.model, context, recipe, *tokenizer, prompts, options,
               [&](std::size_t prompt, std::string_view text, bool) { texts[prompt] += text; });
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const nlohmann::ordered_json json = {{"prompt", prompts[i]},
                                         {"text", texts[i]},
                                         {"tokens", results[i].tokens},
                                         {"ended", results[i].ended}};
    // Bytes that are not UTF-8 cannot stand in JSON.
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  return 0;
}

}  // namespace quaver::cli
