/// AdamW of tensors whose value or moments are not f32.
#pragma once

#include <vector>

#include "ops/cuda/adamw.cuh"
#include "ops/cuda/stream.h"
#include "quaver/backend.h"

namespace quaver::cuda {

/// As `DeviceBackend::adamw`. None of the tensors is empty.
void step_stored(const AdamWStep& step, const AdamWFactors& factors, const float* norm,
                 const std::vector<const AdamWTensor*>& tensors, Stream stream);

}  // namespace quaver::cuda
