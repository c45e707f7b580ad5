#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace quaver {
namespace {

/// How far `step` has come from `begin` (0) to the last step (1).
double progress(const TrainConfig& config, std::int64_t begin, std::int64_t step) {
  return step <= begin ? 0 : static_cast<double>(step - begin) / static_cast<double>(config.steps - begin);
}

/// The share of the highest learning rate above the lowest.
double height(const TrainConfig& config, std::int64_t step) {
  switch (config.schedule) {
    case ScheduleKind::cosine:
      return 0.5 * (1 + std::cos(std::numbers::pi * progress(config, config.warmup_steps, step)));
    case ScheduleKind::wsd: {
      const auto decay =
          std::llround(static_cast<double>(config.decay_fraction) * static_cast<double>(config.steps));
      return 1 - progress(config, std::max<std::int64_t>(config.warmup_steps, config.steps - decay), step);
    }
  }
  return 1;
}

}  // namespace

float learning_rate(const TrainConfig& config, std::int64_t step) {
  const double lr = config.lr, low = config.min_lr_ratio;
  if (step <= config.warmup_steps) {
    return static_cast<float>(lr * static_cast<double>(step) / static_cast<double>(config.warmup_steps));
  }
  return static_cast<float>(lr * (low + (1 - low) * height(config, step)));
}

}  // namespace quaver
