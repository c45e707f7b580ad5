/// The learning rate of every optimizer step.
#pragma once

#include <cstdint>

#include "train/run_config.h"

namespace quaver {

/// The learning rate of optimizer step `step`, 1 <= step <= config.steps.
///
///   warm-up   step <= warmup_steps: lr * step / warmup_steps
///   cosine    afterwards from lr down to lr * min_lr_ratio, reached at the last step
///   wsd       afterwards lr, and over the last decay_fraction of all steps a straight line down to lr *
///   min_lr_ratio
float learning_rate(const TrainConfig& config, std::int64_t step);

}  // namespace quaver
