/// Where a training step's time goes: every operation of the backend, in real steps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/timed_backend.h"
#include "train/run_config.h"

namespace quaver {

struct OperationProfile {
  std::string name;
  OperationTotals per_step;  ///< medians over the steps
};

struct StepProfile {
  std::string backend;
  std::int64_t micro_batch = 0, length = 0, steps = 0;
  double flops_per_token = 0;                ///< that the model needs (train/flops.h)
  double seconds = 0;                        ///< of a step, median
  double bf16_peak = 0;                      ///< floating-point operations per second, median
  double copy_bandwidth = 0;                 ///< bytes read and written per second by a copy, median
  std::vector<OperationProfile> operations;  ///< the longest first
};

/// Takes `steps` optimizer steps after one that is not counted, on a host backend; one micro-batch of config.train.batch x
/// config.model.context synthetic tokens each. The ceilings are measured before every step.
StepProfile profile_steps(const RunConfig& config, std::int64_t steps,
                          const std::function<double()>& measure_peak,
                          const std::function<double()>& measure_copy);

}  // namespace quaver
