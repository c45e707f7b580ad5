/// What a training step costs the host under the CUDA backend, FP8 beside BF16: kernels and copies by name, and the time of a
/// step on a device that computes nothing, so that no GPU is needed and nothing else is in the figure. What the driver
/// takes for a launch is not in it.
///
/// usage: bench_host_steps RUN.toml [--steps N] [--profile fp8|bf16] [section.key=value ...]
///
/// --profile runs the steps of one precision and nothing else, for a profiler.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "idle_device.h"
#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace {

constexpr int kWarmUps = 12;  // until every list is recorded

RunConfig with_precision(RunConfig config, Precision precision) {
  config.precision = precision;
  return config;
}

struct Stepper {
  Stepper(const std::shared_ptr<Backend>& backend, const RunConfig& config) : trainer(backend, config) {}
  double step(const HostBatch& batch) {
    const BusyTimer timer(1);
    trainer.step(1e-4f, std::span(&batch, 1));
    return timer.seconds();
  }
  Trainer trainer;
};

struct StepOperations {
  idle::Counts counts;
  RepeatUse lists;  ///< of the one step
};

StepOperations operations_of_step(const RunConfig& config) {
  StepOperations operations;
  const auto backend = idle::make_backend(&operations.counts);
  Stepper stepper(backend, config);
  for (int i = 0; i < kWarmUps; ++i) stepper.step(synthetic_batch(config, 0));
  operations.counts.clear();
  const RepeatUse before = backend->repeat_use();
  stepper.step(synthetic_batch(config, 0));
  operations.lists = backend->repeat_use();
  operations.lists.replayed -= before.replayed;
  operations.lists.direct -= before.direct;
  return operations;
}

void print_operations(const RunConfig& config) {
  const StepOperations fp8 = operations_of_step(with_precision(config, Precision::fp8)),
                       bf16 = operations_of_step(with_precision(config, Precision::bf16));
  std::map<std::string, std::pair<idle::Started, idle::Started>> rows;
  for (const auto& [name, started] : fp8.counts) rows[name].first = started;
  for (const auto& [name, started] : bf16.counts) rows[name].second = started;
  fmt::print(
      "| operations of a step | FP8, listed | alone | BF16, listed | alone |\n|---|---|---|---|---|\n");
  const auto print = [](const std::string& name, const idle::Started& a, const idle::Started& b) {
    fmt::print("| {} | {} | {} | {} | {} |\n", name, a.listed, a.alone, b.listed, b.alone);
  };
  idle::Started all_fp8, all_bf16;
  for (const auto& [name, row] : rows) {
    print(name, row.first, row.second);
    all_fp8.listed += row.first.listed, all_fp8.alone += row.first.alone;
    all_bf16.listed += row.second.listed, all_bf16.alone += row.second.alone;
  }
  print("all", all_fp8, all_bf16);
  for (const auto& [name, step] : {std::pair("FP8", &fp8), std::pair("BF16", &bf16)}) {
    const RepeatUse& lists = step->lists;
    fmt::print("{}: {} lists replayed, {} not{}{}\n", name, lists.replayed, lists.direct,
               lists.direct > 0 ? ": " : "", lists.direct > 0 ? lists.why_direct : "");
  }
}

RunConfig load(const std::string& path, const std::vector<std::string>& overrides) {
  std::vector<std::string> settings{"data.path=unread"};
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  RunConfig config = load_run_config(path, settings);
  config.train.accumulation = 1;
  return config;
}

int profile(const RunConfig& config, int steps) {
  Stepper stepper(idle::make_backend(nullptr), config);
  std::vector<double> seconds;
  for (int i = 0; i < steps; ++i)
    seconds.push_back(stepper.step(synthetic_batch(config, static_cast<std::uint64_t>(i))));
  fmt::print("{:.3f} ms\n", median(seconds) * 1e3);
  return 0;
}

int run(const RunConfig& config, int steps) {
  print_operations(config);
  const auto backend = idle::make_backend(nullptr);
  Stepper fp8(backend, with_precision(config, Precision::fp8)),
      bf16(backend, with_precision(config, Precision::bf16));
  std::vector<double> fp8_seconds, bf16_seconds, ratios;
  for (int pair = -kWarmUps; pair < steps; ++pair) {
    const HostBatch batch = synthetic_batch(config, static_cast<std::uint64_t>(pair + kWarmUps));
    const double a = fp8.step(batch), b = bf16.step(batch);
    if (pair < 0) continue;
    fp8_seconds.push_back(a);
    bf16_seconds.push_back(b);
    ratios.push_back(a / b);
  }
  fmt::print(
      "{} x {}: the host takes {:.3f} ms (FP8) and {:.3f} ms (BF16), {:.2f} times; medians of {} pairs\n",
      config.train.batch, config.model.context, median(fp8_seconds) * 1e3, median(bf16_seconds) * 1e3,
      median(ratios), steps);
  return 0;
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  CLI::App app("what a step costs the host under the CUDA backend");
  std::string path;
  std::vector<std::string> overrides;
  std::string profiled;
  int steps = 200;
  app.add_option("RUN", path)->required();
  app.add_option("--steps", steps)->check(CLI::PositiveNumber);
  app.add_option("--profile", profiled)->check(CLI::IsMember({"fp8", "bf16"}));
  app.add_option("OVERRIDES", overrides);
  CLI11_PARSE(app, argc, argv);
  const quaver::RunConfig config = quaver::load(path, overrides);
  if (profiled.empty()) return quaver::run(config, steps);
  const auto precision = profiled == "fp8" ? quaver::Precision::fp8 : quaver::Precision::bf16;
  return quaver::profile(quaver::with_precision(config, precision), steps);
}
