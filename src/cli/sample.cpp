#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "quaver/backend.h"
#include "train/generator.h"
#include "train/run_folder.h"
#include "train/run_precision.h"

namespace quaver::cli {

int sample(const SampleArguments& arguments) {
  const LoadedRun run = load_run(arguments.run, arguments.overrides);
  Context context(run.model->backend(), activation_dtype(run.config.precision));
  const bool live = !arguments.json;
  std::string text;
  const auto emit = [&](char byte) {
    text += byte;
    if (!live) return;
    std::fwrite(&byte, 1, 1, stdout);
    std::fflush(stdout);
  };
  if (live) std::fwrite(arguments.prompt.data(), 1, arguments.prompt.size(), stdout);
  const std::int64_t tokens =
      generate(*run.model, context, run_recipe(run.config), arguments.prompt,
               {arguments.tokens, arguments.temperature, arguments.top_k, arguments.seed}, emit);
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
