/// Timing what one Linear of a given shape does in a micro-batch, in FP8 and in BF16.
#pragma once

#include "train/fp8_auto.h"

namespace quaver {

/// Of one Linear.
struct LinearShape {
  std::int64_t rows = 0, in_features = 0, out_features = 0;
};

/// Allocates the operands for as long as it takes, fills them with random numbers, and runs every product and cast of both
/// precisions in turn, at least three rounds, more where they are short.
LinearTimes time_linear(Backend& backend, const Recipe& recipe, const LinearShape& shape,
                        std::int64_t input_readers, std::int64_t micro_batches_per_step);

}  // namespace quaver
