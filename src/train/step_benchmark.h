/// FP8 against BF16 training steps, in alternation, on synthetic tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "quaver/backend.h"
#include "train/fp8_auto.h"
#include "train/run_config.h"

namespace quaver {

struct StepSpeed {
  double seconds = 0;  ///< median of one optimizer step
  double tokens_per_second = 0;
  double mfu = 0;  ///< of the measured BF16 peak; 0 where none was measured
};

struct StepBenchmark {
  std::string backend;
  std::int64_t micro_batch = 0, length = 0, steps = 0;
  double flops_per_token = 0;
  double bf16_peak = 0;  ///< floating-point operations per second, median; 0 where none was measured
  StepSpeed fp8, bf16;
  double ratio = 0;        ///< FP8 over BF16 speed: median over pairs of neighbouring steps
  Fp8AutoReport measured;  ///< by fp8.auto, for the FP8 steps
  RepeatUse repeats;       ///< of the micro-batches of both precisions, those that warmed up included
  MemoryUse arena;         ///< of both models together
};

/// Measures floating-point operations per second; called before every pair of steps. May be empty.
using PeakMeter = std::function<double()>;

/// What a BusyTimer is told that times a run's operations: a device works while the host's threads wait.
int timed_threads(const Backend& backend, const RunConfig& config);

/// Times `steps` pairs of optimizer steps (one micro-batch of config.train.batch x config.model.context
/// tokens each) after pairs that are not counted: one, on a device that repeats micro-batches (run_repeated) as many as it
/// takes to begin, at most six. `progress(done)` is called after every pair.
StepBenchmark benchmark_steps(const RunConfig& config, std::int64_t steps, const PeakMeter& measure_peak,
                              const std::function<void(std::int64_t)>& progress);

}  // namespace quaver
