#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "interop/hf_model.h"
#include "train/run_folder.h"

namespace quaver::cli {

int import_model(const ImportArguments& arguments) {
  HfImportOptions options;
  options.folder = arguments.folder;
  options.run = arguments.output;
  options.overrides = arguments.overrides;
  if (arguments.gate_layout == "per-kv-group") options.gate_layout = GateLayout::per_kv_group;
  options.headwise_gate = arguments.gate == "headwise";
  options.ignored_keys = arguments.ignored_keys;
  const HfImported result = import_hf_model(options);
  const std::string architecture = class_name(result.architecture);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"architecture", architecture},
                                         {"parameters", result.parameters},
                                         {"tokenizer", result.has_tokenizer},
                                         {"tokenizer_problem", result.tokenizer_problem},
                                         {"run", arguments.output}};
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}: {}, {} parameters{}\n", arguments.output, architecture, result.parameters,
             result.has_tokenizer ? ", tokenizer copied" : "");
  if (!result.tokenizer_problem.empty())
    fmt::print("its tokenizer cannot be read: {}\n", result.tokenizer_problem);
  fmt::print(
      "to continue training: quaver train {} train.init={} run.dir=FOLDER data.path=PATH precision=fp8\n",
      config_path(arguments.output), arguments.output);
  return 0;
}

}  // namespace quaver::cli
