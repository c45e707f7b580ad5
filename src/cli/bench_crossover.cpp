#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/bench_config.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/peak.h"
#include "quaver/error.h"
#include "train/step_benchmark.h"

namespace quaver::cli {
namespace {

/// "gated-124m" of "configs/gated-124m.toml".
std::string model_name(const std::string& path) {
  return std::filesystem::path(path).stem().string();
}

nlohmann::ordered_json to_json(const std::string& model, const StepBenchmark& result) {
  return {{"model", model},
          {"micro_batch", result.micro_batch},
          {"context", result.length},
          {"fp8_tokens_per_s", result.fp8.tokens_per_second},
          {"fp8_mfu", result.fp8.mfu},
          {"bf16_tokens_per_s", result.bf16.tokens_per_second},
          {"bf16_mfu", result.bf16.mfu},
          {"fp8_over_bf16", result.ratio},
          {"arena_peak_bytes", result.arena.peak}};
}

void print_row(const std::string& model, const StepBenchmark& result) {
  fmt::print("| {} | {} x {} | {} | {:.1f}% | {} | {:.1f}% | {:.3f} | {} |\n", model, result.micro_batch,
             result.length, with_prefix(result.fp8.tokens_per_second), 100 * result.fp8.mfu,
             with_prefix(result.bf16.tokens_per_second), 100 * result.bf16.mfu, result.ratio,
             bytes(result.arena.peak));
}

}  // namespace

int bench_crossover(const BenchCrossoverArguments& arguments) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  if (!arguments.json)
    fmt::print(
        "| model | micro-batch | FP8 tokens/s | MFU | BF16 tokens/s | MFU | FP8 over BF16 | memory of both "
        "|\n"
        "|---|---|---|---|---|---|---|---|\n");
  for (const std::string& path : arguments.configs) {
    for (const std::int64_t context : arguments.contexts) {
      for (const std::int64_t micro_batch : arguments.micro_batches) {
        const RunConfig config = load_bench_config(path, arguments.overrides, micro_batch, context);
        const auto meter = config.backend != "reference"
                               ? PeakMeter([&] { return measure_peak(config, 0.1); })
                               : PeakMeter();
        try {
          const StepBenchmark result = benchmark_steps(config, arguments.steps, meter, [](std::int64_t) {});
          arguments.json ? rows.push_back(to_json(model_name(path), result))
                         : print_row(model_name(path), result);
        } catch (const Error& error) {
          // A row that does not fit says so; the others are still wanted.
          if (error.kind() != ErrorKind::failure) throw;
          if (arguments.json) {
            rows.push_back({{"model", model_name(path)},
                            {"micro_batch", micro_batch},
                            {"context", context},
                            {"error", error.what()}});
          } else {
            fmt::print("| {} | {} x {} | {} |\n", model_name(path), micro_batch, context, error.what());
          }
        }
        std::fflush(stdout);
      }
    }
  }
  if (arguments.json) fmt::print("{}\n", rows.dump());
  return 0;
}

}  // namespace quaver::cli
