#include "train/schedule.h"

#include <gtest/gtest.h>

namespace quaver {
namespace {

TrainConfig schedule(ScheduleKind kind, std::int64_t steps, std::int64_t warmup) {
  TrainConfig config;
  config.schedule = kind;
  config.steps = steps;
  config.warmup_steps = warmup;
  config.lr = 0.5f;
  config.min_lr_ratio = 0.25f;
  config.decay_fraction = 0.5f;
  return config;
}

TEST(Schedule, WarmUpRisesLinearlyAndReachesTheHighestRateAtItsLastStep) {
  for (const auto kind : {ScheduleKind::cosine, ScheduleKind::wsd}) {
    const TrainConfig config = schedule(kind, 100, 4);
    EXPECT_EQ(learning_rate(config, 1), 0.125f);
    EXPECT_EQ(learning_rate(config, 2), 0.25f);
    EXPECT_EQ(learning_rate(config, 4), 0.5f);
    EXPECT_LE(learning_rate(config, 5), 0.5f);
  }
}

TEST(Schedule, CosineIsHalfwayInTheMiddleAndLowestAtTheLastStep) {
  const TrainConfig config = schedule(ScheduleKind::cosine, 104, 4);
  EXPECT_FLOAT_EQ(learning_rate(config, 54), 0.5f * (0.25f + 0.75f / 2));
  EXPECT_EQ(learning_rate(config, 104), 0.125f);
  for (std::int64_t step = 5; step <= 104; ++step)
    EXPECT_LT(learning_rate(config, step), learning_rate(config, step - 1));
}

TEST(Schedule, WsdIsStableUntilItsDecayAndThenALine) {
  const TrainConfig config = schedule(ScheduleKind::wsd, 100, 4);
  EXPECT_EQ(learning_rate(config, 5), 0.5f);
  EXPECT_EQ(learning_rate(config, 50), 0.5f);
  EXPECT_LT(learning_rate(config, 51), 0.5f);
  EXPECT_FLOAT_EQ(learning_rate(config, 75), 0.5f * (0.25f + 0.75f / 2));
  EXPECT_EQ(learning_rate(config, 100), 0.125f);
}

TEST(Schedule, WsdDecayBeginsAfterTheWarmUpWhenTheyWouldOverlap) {
  TrainConfig config = schedule(ScheduleKind::wsd, 10, 8);
  config.decay_fraction = 1;
  EXPECT_EQ(learning_rate(config, 8), 0.5f);
  EXPECT_FLOAT_EQ(learning_rate(config, 9), 0.5f * (0.25f + 0.75f / 2));
  EXPECT_EQ(learning_rate(config, 10), 0.125f);
}

TEST(Schedule, WithoutWarmUpTheFirstStepIsNearTheHighestRate) {
  EXPECT_EQ(learning_rate(schedule(ScheduleKind::wsd, 10, 0), 1), 0.5f);
  EXPECT_GT(learning_rate(schedule(ScheduleKind::cosine, 1000, 0), 1), 0.499f);
}

TEST(Schedule, ARunThatIsAllWarmUpNeverDecays) {
  EXPECT_EQ(learning_rate(schedule(ScheduleKind::cosine, 5, 10), 5), 0.25f);
  EXPECT_EQ(learning_rate(schedule(ScheduleKind::cosine, 1, 0), 1), 0.125f);
}

}  // namespace
}  // namespace quaver
