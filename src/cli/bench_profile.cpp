#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/threads.h"
#include "cli/bench_config.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/peak.h"
#include "ops/copy_bandwidth.h"
#include "train/step_profile.h"

namespace quaver::cli {
namespace {

double tokens_of(const StepProfile& profile) {
  return static_cast<double>(profile.micro_batch * profile.length);
}

double mfu_of(const StepProfile& profile) {
  return tokens_of(profile) * profile.flops_per_token / profile.seconds / profile.bf16_peak;
}

/// The share of its ceiling that an operation reached: the dot-product peak if it multiplies matrices, else the copy.
double share_of(const OperationTotals& totals, const StepProfile& profile) {
  return totals.flops > 0 ? totals.flops / totals.seconds / profile.bf16_peak
                          : totals.bytes / totals.seconds / profile.copy_bandwidth;
}

double seconds_of_operations(const StepProfile& profile) {
  double seconds = 0;
  for (const OperationProfile& operation : profile.operations) seconds += operation.per_step.seconds;
  return seconds;
}

void print_json(const StepProfile& profile) {
  nlohmann::ordered_json operations = nlohmann::ordered_json::array();
  for (const auto& [name, totals] : profile.operations) {
    operations.push_back({{"operation", name},
                          {"calls", totals.calls},
                          {"ms", totals.seconds * 1e3},
                          {"bytes", totals.bytes},
                          {"flops", totals.flops},
                          {"ceiling_share", share_of(totals, profile)}});
  }
  const nlohmann::ordered_json json = {{"backend", profile.backend},
                                       {"micro_batch", profile.micro_batch},
                                       {"context", profile.length},
                                       {"steps", profile.steps},
                                       {"step_ms", profile.seconds * 1e3},
                                       {"mfu", mfu_of(profile)},
                                       {"bf16_peak_flops", profile.bf16_peak},
                                       {"copy_bytes_per_s", profile.copy_bandwidth},
                                       {"operations", operations}};
  fmt::print("{}\n", json.dump());
}

void print_text(const StepProfile& profile) {
  fmt::print("{} | micro-batch {} x {} | medians of {} steps\n", profile.backend, profile.micro_batch,
             profile.length, profile.steps);
  fmt::print("ceilings: BF16 peak {} FLOP/s, copy {}B/s read and written\n", with_prefix(profile.bf16_peak),
             with_prefix(profile.copy_bandwidth));
  fmt::print("step {:.1f} ms, {} tokens/s, MFU {:.1f}%\n\n", profile.seconds * 1e3,
             with_prefix(tokens_of(profile) / profile.seconds), 100 * mfu_of(profile));
  fmt::print("{:<26} {:>6} {:>9} {:>6} {:>9} {:>9} {:>8} {:>8}\n", "operation", "calls", "ms", "time", "MB",
             "GFLOP", "GB/s", "ceiling");
  for (const auto& [name, totals] : profile.operations) {
    fmt::print("{:<26} {:>6} {:>9.3f} {:>5.1f}% {:>9.2f} {:>9.3f} {:>8.1f} {:>7.0f}%\n", name, totals.calls,
               totals.seconds * 1e3, 100 * totals.seconds / profile.seconds, totals.bytes * 1e-6,
               totals.flops * 1e-9, totals.bytes / totals.seconds * 1e-9, 100 * share_of(totals, profile));
  }
  const double outside = profile.seconds - seconds_of_operations(profile);
  fmt::print("{:<26} {:>6} {:>9.3f} {:>5.1f}%\n", "outside operations", "", outside * 1e3,
             100 * outside / profile.seconds);
}

}  // namespace

int bench_profile(const BenchProfileArguments& arguments) {
  const RunConfig config =
      load_bench_config(arguments.config, arguments.overrides, arguments.micro_batch, arguments.context);
  CopyBandwidth copy(config.threads > 0 ? config.threads : available_threads());
  const StepProfile profile = profile_steps(
      config, arguments.steps, [&] { return measure_peak(config, 0.05); }, [&] { return copy.measure(); });
  arguments.json ? print_json(profile) : print_text(profile);
  return 0;
}

}  // namespace quaver::cli
