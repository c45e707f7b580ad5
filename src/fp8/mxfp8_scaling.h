/// The rule of MXFP8, which the CUDA backend computes in its kernel (ops/cuda/block_cast.cuh).
#pragma once

#include <memory>

#include "quaver/recipe.h"

namespace quaver {

const std::shared_ptr<const ScaleRule>& mxfp8_scale_rule();

}  // namespace quaver
