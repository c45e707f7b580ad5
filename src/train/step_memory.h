/// The memory of one training step, by part.
#pragma once

#include <cstdint>
#include <memory>

#include "quaver/backend.h"
#include "train/run_config.h"

namespace quaver {

/// Bytes in tensors.
struct StepMemory {
  std::int64_t weights = 0;        ///< masters
  std::int64_t optimizer = 0;      ///< both moments, and their scales
  std::int64_t gradients = 0;      ///< FP32
  std::int64_t weight_copies = 0;  ///< what GEMMs read: FP8 or BF16, and the FP8 state
  std::int64_t activations = 0;    ///< what forward keeps for backward, the logits not counted
  std::int64_t logits = 0;
  std::int64_t peak = 0;  ///< at the worst moment of the step, all parts together
};

/// Runs the parts of one step of config.train.batch x config.model.context tokens one after the other, on a model of
/// its own, and reads what each leaves in the backend's arena. Nothing else may use the backend meanwhile.
StepMemory measure_step_memory(const std::shared_ptr<Backend>& backend, const RunConfig& config);

}  // namespace quaver
