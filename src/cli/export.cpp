#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "interop/hf_model.h"

namespace quaver::cli {

int export_model(const ExportArguments& arguments) {
  const HfExported result =
      export_hf_model({arguments.run, arguments.output,
                       arguments.dtype == "bfloat16" ? DType::bf16 : DType::f32, arguments.shard_bytes});
  const std::string architecture = class_name(result.architecture);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"architecture", architecture},
                                         {"parameters", result.parameters},
                                         {"tokenizer", result.has_tokenizer},
                                         {"folder", arguments.output}};
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}: {}, {} parameters in {}\n", arguments.output, architecture, result.parameters,
             arguments.dtype);
  if (!result.has_tokenizer) fmt::print("no tokenizer files: the run's tokens have no tokenizer.json\n");
  return 0;
}

}  // namespace quaver::cli
