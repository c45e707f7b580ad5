#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "base/suggest.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "quaver/error.h"

namespace quaver::cli {
namespace {

void add_train(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("train", "Train a model as a run file says");
  auto arguments = std::make_shared<TrainArguments>();
  command->add_option("config", arguments->config, "run file")->required()->type_name("RUN.toml");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_flag("--strict-fp8", arguments->strict_fp8,
                    "fail if a product that should run in FP8 did not");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return train(*arguments); }; });
}

void add_eval(CLI::App& app, Command& chosen) {
  CLI::App* command =
      app.add_subcommand("eval", "Validation loss, or accuracy on questions, of a trained model");
  auto arguments = std::make_shared<EvalArguments>();
  command->add_option("run", arguments->run, "run folder, checkpoint, or Hugging Face folder")
      ->required()
      ->type_name("RUN");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command
      ->add_option("--choices", arguments->choices,
                   "multiple-choice questions: a file of llm.c's form, or JSON lines")
      ->type_name("FILE");
  command->add_option("--limit", arguments->limit, "only the first N questions; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return eval(*arguments); }; });
}

void add_inspect(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("inspect", "FP8 state of a trained model, module by module");
  auto arguments = std::make_shared<InspectArguments>();
  command->add_option("run", arguments->run, "run folder")->required()->type_name("RUN");
  command->add_flag("--health", arguments->health, "what is wrong with its FP8, and what to do");
  command->add_option("--what-if", arguments->what_if,
                      "what other casts would do: e4m3, e5m2, margin=N, scale=S, mxfp8, with commas");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return inspect(*arguments); }; });
}

void add_probe(CLI::App& app, Command& chosen) {
  CLI::App* command =
      app.add_subcommand("probe", "Residual stream, first-token attention and gates of a trained model");
  auto arguments = std::make_shared<ProbeArguments>();
  command->add_option("run", arguments->run, "run folder")->required()->type_name("RUN");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return probe(*arguments); }; });
}

void add_verify(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("verify", "Check every file of a run");
  auto arguments = std::make_shared<VerifyArguments>();
  command->add_option("run", arguments->run, "run folder, or a checkpoint's folder")
      ->required()
      ->type_name("RUN");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return verify(*arguments); }; });
}

void add_doctor(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("doctor", "What this machine has, and what a run would use");
  auto arguments = std::make_shared<DoctorArguments>();
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return doctor(*arguments); }; });
}

int fail_with(int exit_code, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "quaver: error: {}\n", message);
  return exit_code;
}

constexpr int kFailure = static_cast<int>(ErrorKind::failure), kUsage = static_cast<int>(ErrorKind::usage);

int run_guarded(const Command& command) {
  try {
    const int exit_code = command();
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) return fail_with(kFailure, "cannot write to stdout");
    return exit_code;
  } catch (const Error& error) {
    return fail_with(error.exit_code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail_with(kFailure, "out of memory. Hint: a smaller train.batch, model.context or model");
  } catch (const std::exception& error) {
    return fail_with(kFailure, error.what());
  }
}

/// What was wrong when the arguments name no command of `app`.
std::string describe_missing_command(const CLI::App& app) {
  const std::vector<std::string> words = app.remaining();
  if (words.empty()) return "no command given";
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  const std::string nearest = nearest_name(words.front(), names);
  return fmt::format("unknown command \"{}\"{}; commands: {}", words.front(),
                     nearest.empty() ? "" : fmt::format("; did you mean \"{}\"?", nearest),
                     fmt::join(names, ", "));
}

int run(int argc, char** argv) {
  CLI::App app("Trains, checks and samples transformer language models in FP8", "quaver");
  Command chosen;
  add_train(app, chosen);
  add_eval(app, chosen);
  add_generation(app, chosen);
  add_inspect(app, chosen);
  add_probe(app, chosen);
  add_verify(app, chosen);
  add_tokenize(app, chosen);
  add_interop(app, chosen);
  add_bench(app, chosen);
  add_doctor(app, chosen);
  app.allow_extras();  // an unknown command is reported below; the commands themselves take no extras
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    return fail_with(kUsage, fmt::format("{}. Hint: quaver --help", error.what()));
  }
  if (!chosen) return fail_with(kUsage, describe_missing_command(app) + ". Hint: quaver --help");
  return run_guarded(chosen);
}

}  // namespace
}  // namespace quaver::cli

int main(int argc, char** argv) {
  return quaver::cli::run(argc, argv);
}
