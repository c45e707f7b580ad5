/// The second half of fp8.auto, for devices that work beside the host: whole steps decide whether what the single products
/// suggest is used. Sums of their times leave out launches, waiting, and what lies in a cache.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quaver/backend.h"
#include "train/run_config.h"

namespace quaver {

/// Seconds of one optimizer step, all that belongs to it: passes, scales and counters, the update.
struct StepTimes {
  double fp8 = 0;    ///< every product in FP8 that the run file allows
  double mixed = 0;  ///< without those that FP8 did not make faster by themselves
  double bf16 = 0;   ///< no product in FP8 that the run file does not insist on
};

enum class StepChoice { fp8, mixed, bf16 };

/// BF16, unless another takes less than 0.99 of its time; of the others the faster one.
StepChoice fastest_step(const StepTimes& times);

/// Overrides, to stand before the run file's own, that keep every product in BF16. `why`: see Fp8Override.
std::vector<Fp8Override> bf16_everywhere(const std::string& why);

/// Trains on synthetic tokens three times, one after the other, each for as long as that needs a run's memory. `found`: the
/// overrides that the single products suggest.
StepTimes time_steps(const std::shared_ptr<Backend>& backend, const RunConfig& config,
                     const std::vector<Fp8Override>& found);

/// For people.
std::string describe(const StepTimes& times);

}  // namespace quaver
