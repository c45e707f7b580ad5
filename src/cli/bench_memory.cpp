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
  return measure_step_memory(make_backend(config.backend, config.threads), config);
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

constexpr std::array<const char*, 3> kRecompute = {"none", "attention", "block"};

/// The same in FP8 for every value of model.recompute, in the order of the enumeration.
std::array<StepMemory, kRecompute.size()> measure_recompute(RunConfig config) {
  std::array<StepMemory, kRecompute.size()> memories;
  for (std::size_t i = 0; i < kRecompute.size(); ++i) {
    config.model.recompute = static_cast<Recompute>(i);
    memories[i] = measure(config, Precision::fp8);
  }
  return memories;
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
  const StepMemory fp8 = measure(config, Precision::fp8), bf16 = measure(config, Precision::bf16);
  if (arguments.json) {
    nlohmann::ordered_json json = {{"micro_batch", config.train.batch},
                                   {"context", config.model.context},
                                   {"fp8", to_json(fp8)},
                                   {"bf16", to_json(bf16)}};
    for (std::size_t i = 0; i < kRecompute.size(); ++i)
      json["recompute"][kRecompute[i]] = to_json(recompute[i]);
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("memory of a training step, micro-batch {} x {}\n{:<14} {:>12} {:>12} {:>9}\n",
             config.train.batch, config.model.context, "", "FP8", "BF16", "FP8/BF16");
  for (const Part& part : kParts) {
    const std::int64_t a = fp8.*part.bytes, b = bf16.*part.bytes;
    fmt::print("{:<14} {:>12} {:>12} {:>9.2f}\n", part.name, bytes(a), bytes(b),
               static_cast<double>(a) / static_cast<double>(b));
  }
  fmt::print("\n{:<14} {:>12} {:>12}\n", "recompute, FP8", "activations", "peak");
  for (std::size_t i = 0; i < kRecompute.size(); ++i)
    fmt::print("{:<14} {:>12} {:>12}\n", kRecompute[i], bytes(recompute[i].activations),
               bytes(recompute[i].peak));
  return 0;
}

}  // namespace quaver::cli
