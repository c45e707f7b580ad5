#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"

namespace quaver::cli {
namespace {

void add_export(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("export", "Write a trained model as a Hugging Face folder");
  auto arguments = std::make_shared<ExportArguments>();
  command->add_option("run", arguments->run, "run folder")->required()->type_name("RUN");
  command->add_option("--output", arguments->output, "folder to make")->required()->type_name("DIR");
  command->add_option("--dtype", arguments->dtype, "type of the weights; bfloat16 rounds them")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  command->add_option("--shard-size", arguments->shard_bytes, "largest weights file, e.g. 2GB")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::PositiveNumber)
      ->type_name("BYTES");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return export_model(*arguments); }; });
}

void add_import(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("import", "Make a run folder of a Hugging Face model");
  auto arguments = std::make_shared<ImportArguments>();
  command->add_option("folder", arguments->folder, "folder of config.json and the weights")
      ->required()
      ->type_name("DIR");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_option("--output", arguments->output, "run folder to make")->required()->type_name("RUN");
  command
      ->add_option("--gate-layout", arguments->gate_layout,
                   "rows of a gated q_proj: by head, or as in the code of arXiv 2505.06708")
      ->check(CLI::IsMember({"stock", "per-kv-group"}))
      ->capture_default_str();
  command
      ->add_option("--gate", arguments->gate, "headwise: a stock gate that was exported from a headwise one")
      ->check(CLI::IsMember({"elementwise", "headwise"}))
      ->capture_default_str();
  command
      ->add_option("--ignore-key", arguments->ignored_keys, "key of config.json without effect on the model")
      ->type_name("KEY")
      ->allow_extra_args(false);
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return import_model(*arguments); }; });
}

}  // namespace

void add_interop(CLI::App& app, Command& chosen) {
  add_export(app, chosen);
  add_import(app, chosen);
}

}  // namespace quaver::cli
