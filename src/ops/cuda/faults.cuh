/// Inputs that a kernel cannot accept and nobody waits for: the smallest row that holds one is noted on the
/// device, and the next copy_to_host throws.
#pragma once

#include <climits>

#include "ops/cuda/launch.h"

namespace quaver::cuda {

enum FaultKind : int { kEmbeddingIndex, kTargetClass, kFaultKinds };
constexpr int kNoFault = INT_MAX;

/// Whether an index lies in [0, limit); notes the row if not.
__device__ inline bool check_index(std::int64_t index, std::int64_t limit, std::int64_t row, FaultKind kind,
                                   int* faults) {
  if (index >= 0 && index < limit) return true;
  atomicMin(faults + kind, static_cast<int>(row));
  return false;
}

}  // namespace quaver::cuda
