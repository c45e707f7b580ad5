/// The tensors of a run that are cast to FP8, as observe/health.h judges them.
#pragma once

#include <span>
#include <vector>

#include "observe/health.h"
#include "train/fp8_state.h"

namespace quaver {

/// Every slot that something was cast into; an input that siblings share once.
std::vector<CastTensor> cast_tensors(std::span<const LinearState> states);

}  // namespace quaver
