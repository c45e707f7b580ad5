#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/bench_config.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/peak.h"
#include "train/step_benchmark.h"

namespace quaver::cli {
namespace {

nlohmann::ordered_json to_json(const StepSpeed& speed) {
  return {{"step_ms", speed.seconds * 1e3}, {"tokens_per_s", speed.tokens_per_second}, {"mfu", speed.mfu}};
}

void print_json(const StepBenchmark& result) {
  const nlohmann::ordered_json json = {{"backend", result.backend},
                                       {"micro_batch", result.micro_batch},
                                       {"context", result.length},
                                       {"steps", result.steps},
                                       {"flops_per_token", result.flops_per_token},
                                       {"bf16_peak_flops", result.bf16_peak},
                                       {"fp8", to_json(result.fp8)},
                                       {"bf16", to_json(result.bf16)},
                                       {"fp8_over_bf16", result.ratio},
                                       {"replayed", result.repeats.replayed},
                                       {"direct", result.repeats.direct}};
  fmt::print("{}\n", json.dump());
}

void print_text(const StepBenchmark& result) {
  const bool has_peak = result.bf16_peak > 0;
  fmt::print("{} | micro-batch {} x {} | medians of {} steps each, in alternation\n", result.backend,
             result.micro_batch, result.length, result.steps);
  if (has_peak) fmt::print("BF16 peak  {} FLOP/s, measured\n", with_prefix(result.bf16_peak));
  for (const std::string& line : describe(result.measured)) fmt::print("{}\n", line);
  const auto print_speed = [&](const char* name, const StepSpeed& speed) {
    fmt::print("{:<9}  {} tokens/s  {:.1f} ms{}\n", name, with_prefix(speed.tokens_per_second),
               speed.seconds * 1e3, has_peak ? fmt::format("  MFU {:.1f}%", 100 * speed.mfu) : "");
  };
  print_speed("FP8", result.fp8);
  print_speed("BF16", result.bf16);
  fmt::print("FP8/BF16   {:.3f} times the speed (median of pairs)\n", result.ratio);
  const RepeatUse& repeats = result.repeats;
  if (repeats.replayed + repeats.direct == 0) return;
  fmt::print(
      "sequences of operations: {} replayed as CUDA graphs, {} started one by one (the last because of {})\n",
      repeats.replayed, repeats.direct, repeats.why_direct);
}

}  // namespace

int bench_step(const BenchStepArguments& arguments) {
  const RunConfig config =
      load_bench_config(arguments.config, arguments.overrides, arguments.micro_batch, arguments.context);
  const auto meter =
      config.backend != "reference" ? PeakMeter([&] { return measure_peak(config, 0.2); }) : PeakMeter();
  const StepBenchmark result = benchmark_steps(config, arguments.steps, meter, [&](std::int64_t done) {
    fmt::print(stderr, "{} of {} pairs of steps{}\n", done, arguments.steps, done == 0 ? " (warmed up)" : "");
  });
  arguments.json ? print_json(result) : print_text(result);
  return 0;
}

}  // namespace quaver::cli
