#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/bench_config.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/peak.h"
#include "generate/generation_benchmark.h"

namespace quaver::cli {
namespace {

nlohmann::ordered_json to_json(const GenerationSpeed& speed) {
  return {{"token_ms", speed.seconds * 1e3},
          {"tokens_per_s", speed.tokens_per_second},
          {"weight_bytes", speed.weight_bytes},
          {"bandwidth_share", speed.bandwidth_share}};
}

void print_json(const GenerationBenchmark& result) {
  const nlohmann::ordered_json json = {
      {"backend", result.backend},    {"cached", result.cached},
      {"tokens", result.tokens},      {"read_bytes_per_s", result.read_bandwidth},
      {"fp8", to_json(result.fp8)},   {"bf16", to_json(result.bf16)},
      {"fp8_over_bf16", result.ratio}};
  fmt::print("{}\n", json.dump());
}

void print_text(const GenerationBenchmark& result) {
  fmt::print("{} | one token at a time after {} | medians of {} tokens each, in alternation\n",
             result.backend, result.cached, result.tokens);
  if (result.read_bandwidth > 0)
    fmt::print("memory     {}B/s read, measured\n", with_prefix(result.read_bandwidth));
  const auto print_speed = [&](const char* name, const GenerationSpeed& speed) {
    fmt::print("{:<9}  {} tokens/s  {:.2f} ms", name, with_prefix(speed.tokens_per_second),
               speed.seconds * 1e3);
    if (speed.bandwidth_share > 0) {
      fmt::print("  {}B of weights at {:.0f}% of the bandwidth", with_prefix(speed.weight_bytes),
                 100 * speed.bandwidth_share);
    }
    fmt::print("\n");
  };
  print_speed("FP8", result.fp8);
  print_speed("BF16", result.bf16);
  fmt::print("FP8/BF16   {:.3f} times the speed (median of pairs)\n", result.ratio);
}

}  // namespace

int bench_generate(const BenchGenerateArguments& arguments) {
  const RunConfig config = load_bench_config(arguments.config, arguments.overrides);
  const GenerationBenchmark result =
      benchmark_generation(config, arguments.cached, arguments.tokens, read_bandwidth_meter(config, 0.05));
  arguments.json ? print_json(result) : print_text(result);
  return 0;
}

}  // namespace quaver::cli
