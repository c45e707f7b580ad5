#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "base/check.h"
#include "cli/commands.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "text/utf8.h"
#include "train/generator.h"
#include "train/run_folder.h"
#include "train/run_precision.h"

namespace quaver::cli {

int sample(const SampleArguments& arguments) {
  const LoadedRun run = load_run(arguments.run, arguments.overrides);
  const auto tokenizer = load_tokenizer(run.config.data);
  require(tokenizer != nullptr,
          "sample: {} was trained on tokens whose tokenizer is not known. Hint: "
          "data.tokenizer=PATH",
          arguments.run);
  Context context(run.model->backend(), activation_dtype(run.config.precision));
  const bool live = !arguments.json;
  std::string text;
  Utf8Stream stream;
  const auto show = [&](const std::string& part) {
    text += part;
    if (!live) return;
    std::fwrite(part.data(), 1, part.size(), stdout);
    std::fflush(stdout);
  };
  const auto emit = [&](std::string_view bytes) { show(stream.append(bytes)); };
  if (live) std::fwrite(arguments.prompt.data(), 1, arguments.prompt.size(), stdout);
  const std::int64_t tokens =
      generate(*run.model, context, run_recipe(run.config), *tokenizer, arguments.prompt,
               {arguments.tokens, arguments.temperature, arguments.top_k, arguments.seed}, emit);
  show(stream.finish());
  if (live) {
    fmt::print("\n");
  } else {
    const nlohmann::ordered_json json = {{"prompt", arguments.prompt},
                                         {"text", text},
                                         {"tokens", tokens},
                                         {"end_of_document", tokens < arguments.tokens}};
    // Bytes that are not UTF-8 cannot stand in JSON.
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  return 0;
}

}  // namespace quaver::cli
