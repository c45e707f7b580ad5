#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "cli/bench_config.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "train/step_memory.h"

namespace quaver::cli {
namespace {

StepMemory measure(RunConfig config, Precision precision) {
  config.precision = precision;
  return measure_step_memory(make_backend(config.backend, config.threads, config.products), config);
}

struct Part {
  const char* name;
  std::int64_t StepMemory::*bytes;
};
constexpr Part kParts[] = {{"weights", &StepMemory::weights},
                           {"optimizer", &StepMemory::optimizer},
                           {"gradients", &StepMemory::gradients},
                           {"weight_copies", &StepMemory::weight_copies},
                           {"activations", &StepMemory::activations},
                           {"logits", &StepMemory::logits},
                           {"peak", &StepMemory::peak}};

constexpr std::array<const char*, 4> kRecompute = {"none", "gated", "attention", "block"};

struct Measured {
  StepMemory fp8, bf16;
};

/// For every value of model.recompute, in the order of the enumeration.
std::array<Measured, kRecompute.size()> measure_recompute(RunConfig config) {
  std::array<Measured, kRecompute.size()> memories;
  for (std::size_t i = 0; i < kRecompute.size(); ++i) {
    config.model.recompute = static_cast<Recompute>(i);
    memories[i] = {measure(config, Precision::fp8), measure(config, Precision::bf16)};
  }
  return memories;
}

double ratio(std::int64_t a, std::int64_t b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

nlohmann::ordered_json to_json(const StepMemory& memory) {
  nlohmann::ordered_json json;
  for (const Part& part : kParts) json[part.name] = memory.*part.bytes;
  return json;
}

}  // namespace

int bench_memory(const BenchMemoryArguments& arguments) {
  const RunConfig config =
      load_bench_config(arguments.config, arguments.overrides, arguments.micro_batch, arguments.context);
  const auto recompute = measure_recompute(config);
  const auto& [fp8, bf16] = recompute[static_cast<std::size_t>(config.model.recompute)];
  if (arguments.json) {
    nlohmann::ordered_json json = {{"micro_batch", config.train.batch},
                                   {"context", config.model.context},
                                   {"fp8", to_json(fp8)},
                                   {"bf16", to_json(bf16)}};
    for (std::size_t i = 0; i < kRecompute.size(); ++i) {
      json["recompute"][kRecompute[i]] = to_json(recompute[i].fp8);
      json["recompute_bf16"][kRecompute[i]] = to_json(recompute[i].bf16);
    }
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("memory of a training step, micro-batch {} x {}\n{:<14} {:>12} {:>12} {:>9}\n",
             config.train.batch, config.model.context, "", "FP8", "BF16", "FP8/BF16");
  for (const Part& part : kParts) {
    const std::int64_t a = fp8.*part.bytes, b = bf16.*part.bytes;
    fmt::print("{:<14} {:>12} {:>12} {:>9.2f}\n", part.name, bytes(a), bytes(b), ratio(a, b));
  }
  fmt::print("\n{:<14} {:>12} {:>12} {:>9} {:>15} {:>12} {:>12}\n", "activations", "FP8", "BF16", "FP8/BF16",
             "FP8/BF16's none", "FP8 peak", "BF16 peak");
  for (std::size_t i = 0; i < kRecompute.size(); ++i) {
    const auto& [a, b] = recompute[i];
    fmt::print("{:<14} {:>12} {:>12} {:>9.2f} {:>15.2f} {:>12} {:>12}\n", kRecompute[i], bytes(a.activations),
               bytes(b.activations), ratio(a.activations, b.activations),
               ratio(a.activations, recompute[0].bf16.activations), bytes(a.peak), bytes(b.peak));
  }
  return 0;
}

}  // namespace quaver::cli
