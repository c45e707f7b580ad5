#include <CLI/CLI.hpp>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"

namespace quaver::cli {
namespace {

/// What all benchmarks of one training step take.
template <typename Arguments>
void add_step_options(CLI::App& command, Arguments& arguments) {
  command.add_option("config", arguments.config, "run file or run folder")->required()->type_name("RUN.toml");
  command.add_option("overrides", arguments.overrides, kOverridesHelp)->type_name("");
  command.add_option("--micro-batch", arguments.micro_batch, "sequences per step instead of train.batch")
      ->check(CLI::PositiveNumber)
      ->type_name("B");
  command.add_option("--context", arguments.context, "tokens per sequence instead of model.context")
      ->check(CLI::PositiveNumber)
      ->type_name("T");
}

void add_bench_memory(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand("memory", "Memory of a training step by part, FP8 against BF16");
  auto arguments = std::make_shared<BenchMemoryArguments>();
  add_step_options(*command, *arguments);
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return bench_memory(*arguments); }; });
}

void add_bench_generate(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand("generate", "FP8 against BF16 generation, a token at a time");
  auto arguments = std::make_shared<BenchGenerateArguments>();
  command->add_option("config", arguments->config, "run file or run folder")
      ->required()
      ->type_name("RUN.toml");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_option("--cached", arguments->cached, "tokens of prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--tokens", arguments->tokens, "timed tokens of each precision")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return bench_generate(*arguments); }; });
}

void add_bench_kernels(CLI::App& bench, Command& chosen) {
  CLI::App* command =
      bench.add_subcommand("kernels", "Operations, each beside its ceiling: a copy, or the peak of products");
  auto arguments = std::make_shared<BenchKernelsArguments>();
  command->add_option("--backend", arguments->backend, "cpu, cuda or reference")->capture_default_str();
  command->add_option("--tokens", arguments->tokens, "rows of the matrices; default: beyond the caches")
      ->check(CLI::PositiveNumber)
      ->type_name("M");
  command->add_option("--only", arguments->only, "operations whose name contains this")->type_name("TEXT");
  command->add_option("--threads", arguments->threads, "of the host; default: one, and all processors")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  const std::map<std::string, Products> products{{"exact", Products::exact}, {"fast", Products::fast}};
  command->add_option("--products", arguments->products, "exact or fast, as the key of run files")
      ->transform(CLI::CheckedTransformer(products).description(""))
      ->default_str("exact")
      ->type_name("WORD");
  command->add_option("--rounds", arguments->rounds, "timed rounds of each operation")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the results as one JSON array");
  command->callback([=, &chosen] { chosen = [=] { return bench_kernels(*arguments); }; });
}

void add_bench_crossover(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand(
      "crossover", "One table of FP8 against BF16 steps over models, micro-batches and contexts");
  auto arguments = std::make_shared<BenchCrossoverArguments>();
  command->add_option("configs", arguments->configs, "run files or run folders")
      ->required()
      ->type_name("RUN.toml...");
  command->add_option("--set", arguments->overrides, kOverridesHelp)->type_name("KEY=VALUE");
  command->add_option("--micro-batch", arguments->micro_batches, "sequences per step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("B...");
  command->add_option("--context", arguments->contexts, "tokens per sequence")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("T...");
  command->add_option("--steps", arguments->steps, "timed steps of each precision")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the results as one JSON array");
  command->callback([=, &chosen] { chosen = [=] { return bench_crossover(*arguments); }; });
}

void add_bench_gemm(CLI::App& bench, Command& chosen) {
  CLI::App* command =
      bench.add_subcommand("gemm", "FP8 against BF16 products of every Linear, with their casts");
  auto arguments = std::make_shared<BenchGemmArguments>();
  command->add_option("config", arguments->config, "run file or run folder")
      ->required()
      ->type_name("RUN.toml");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_option("--backend", arguments->backend, "instead of the configuration's");
  command->add_option("--micro-batch", arguments->micro_batch, "sequences per step instead of train.batch")
      ->check(CLI::PositiveNumber)
      ->type_name("B");
  command->add_option("--context", arguments->context, "tokens per sequence instead of model.context")
      ->check(CLI::PositiveNumber)
      ->type_name("T");
  command->add_option("--square", arguments->square, "also products of square matrices of this size")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the results as one JSON array");
  command->callback([=, &chosen] { chosen = [=] { return bench_gemm(*arguments); }; });
}

void add_bench_tokenize(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand("tokenize", "Encoding of a text file on one thread");
  auto arguments = std::make_shared<BenchTokenizeArguments>();
  command->add_option("text", arguments->text, "text file")->required()->type_name("TEXT");
  command->add_option("--tokenizer", arguments->tokenizer, "\"bytes\", or a tokenizer's file or folder")
      ->required()
      ->type_name("T");
  command->add_option("--rounds", arguments->rounds, "timed passes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return bench_tokenize(*arguments); }; });
}

void add_bench_step(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand("step", "FP8 against BF16 training steps, in alternation");
  auto arguments = std::make_shared<BenchStepArguments>();
  add_step_options(*command, *arguments);
  command->add_option("--steps", arguments->steps, "timed steps of each precision")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return bench_step(*arguments); }; });
}

void add_bench_profile(CLI::App& bench, Command& chosen) {
  CLI::App* command = bench.add_subcommand(
      "profile", "Where a training step's time goes on a CPU, by operation, beside its ceilings");
  auto arguments = std::make_shared<BenchProfileArguments>();
  add_step_options(*command, *arguments);
  command->add_option("--steps", arguments->steps, "timed steps")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return bench_profile(*arguments); }; });
}

}  // namespace

void add_bench(CLI::App& app, Command& chosen) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed and memory")->require_subcommand(1);
  add_bench_step(*bench, chosen);
  add_bench_profile(*bench, chosen);
  add_bench_crossover(*bench, chosen);
  add_bench_gemm(*bench, chosen);
  add_bench_generate(*bench, chosen);
  add_bench_memory(*bench, chosen);
  add_bench_kernels(*bench, chosen);
  add_bench_tokenize(*bench, chosen);
}

}  // namespace quaver::cli
