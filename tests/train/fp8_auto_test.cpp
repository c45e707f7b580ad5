/// fp8.auto: the choice as a function of times, and what becomes of it in a run.
#include "train/fp8_auto.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "quaver/linear.h"
#include "support/errors.h"
#include "support/test_backends.h"
#include "train/fp8_policy.h"
#include "train/run_folder.h"
#include "train/trainer.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

using Choice = std::array<bool, 3>;
constexpr Choice kAll = {true, true, true}, kNone = {};

/// Products that take 1 in BF16 and `fp8` in FP8, casts that cost nothing.
LinearTimes products(double fprop, double dgrad, double wgrad) {
  LinearTimes times;
  times.fp8 = {fprop, dgrad, wgrad};
  times.bf16 = {1, 1, 1};
  return times;
}

TEST(Fp8Auto, WithoutCastsEachProductChoosesForItself) {
  for (int mask = 0; mask < 8; ++mask) {
    const Choice faster = {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
    const auto time = [&](int i) { return faster[i] ? 0.5 : 2.0; };
    EXPECT_EQ(fastest_choice(products(time(0), time(1), time(2)), kAll), faster) << mask;
  }
}

TEST(Fp8Auto, WhatIsNotAllowedStaysOut) {
  EXPECT_EQ(fastest_choice(products(0.5, 0.5, 0.5), {true, false, true}), (Choice{true, false, true}));
  EXPECT_EQ(fastest_choice(products(0.5, 0.5, 2), {false, false, true}), kNone);
}

TEST(Fp8Auto, EqualTimesAreFp8) {
  EXPECT_EQ(fastest_choice(products(1, 1, 1), kAll), kAll);
}

TEST(Fp8Auto, CastsAreChargedOnceToAllWhoReadThem) {
  LinearTimes times = products(0.9, 0.9, 0.9);
  times.gradient_fp8 = 0.15;  // dearer than what dgrad or wgrad gains, cheaper than what both gain
  EXPECT_EQ(fastest_choice(times, kAll), kAll);
  EXPECT_EQ(fastest_choice(times, {true, true, false}), (Choice{true, false, false}));
  times.gradient_fp8 = 0.25;
  EXPECT_EQ(fastest_choice(times, kAll), (Choice{true, false, false}));
}

TEST(Fp8Auto, AnInputInTwoFormsCostsBoth) {
  LinearTimes times = products(0.5, 1, 1.1);
  times.input_both = 0.05;
  EXPECT_EQ(fastest_choice(times, kAll), (Choice{true, true, false})) << "0.1 gained for 0.05";
  times.input_both = 0.2;
  EXPECT_EQ(fastest_choice(times, kAll), kAll) << "0.1 gained for 0.2";
}

TEST(Fp8Auto, TotalsAreSumsOfWhatRuns) {
  LinearTimes times;
  times.fp8 = {1, 2, 4};
  times.bf16 = {8, 16, 32};
  times.input_fp8 = 64, times.input_bf16 = 128, times.input_both = 256;
  times.weight_fp8 = 512, times.weight_bf16 = 1024;
  times.gradient_fp8 = 2048;
  EXPECT_EQ(times.total(kAll), 1 + 2 + 4 + 64 + 512 + 2048);
  EXPECT_EQ(times.total(kNone), 8 + 16 + 32 + 128 + 1024);
  EXPECT_EQ(times.total({true, false, false}), 1 + 16 + 32 + 256 + 512 + 1024);
  EXPECT_EQ(times.total({false, true, false}), 8 + 2 + 32 + 128 + 512 + 1024 + 2048);
  EXPECT_EQ(times.total({true, false, true}), 1 + 16 + 4 + 64 + 512 + 1024 + 2048);
}

TEST(Fp8Auto, WholeStepsAreInBf16UnlessFp8IsClearlyFaster) {
  EXPECT_EQ(fastest_step({.fp8 = 1.0, .mixed = 1.0, .bf16 = 1.0}), StepChoice::bf16);
  EXPECT_EQ(fastest_step({.fp8 = 0.995, .mixed = 0.995, .bf16 = 1.0}), StepChoice::bf16) << "noise";
  EXPECT_EQ(fastest_step({.fp8 = 0.9, .mixed = 0.9, .bf16 = 1.0}), StepChoice::fp8);
  EXPECT_EQ(fastest_step({.fp8 = 0.9, .mixed = 0.95, .bf16 = 1.0}), StepChoice::fp8)
      << "products that lose by themselves may win together";
  EXPECT_EQ(fastest_step({.fp8 = 1.2, .mixed = 0.9, .bf16 = 1.0}), StepChoice::mixed);
  EXPECT_EQ(fastest_step({.fp8 = 1.2, .mixed = 1.1, .bf16 = 1.0}), StepChoice::bf16);
}

TEST(Fp8Auto, OverridesNameExactlyTheMeasuredModules) {
  const std::vector<std::string> all = {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down",
                                        "lm_head"};
  MeasuredLinears ups{{"blocks.0.up", "blocks.1.up"}, 1, 1, 1, products(2, 1, 2), kAll, {false, true, false}};
  MeasuredLinears one_down{{"blocks.1.down", "lm_head"}, 1, 1, 1, products(1, 1, 2), {false, true, true},
                           {false, true, false}};
  const auto overrides = overrides_of({ups, one_down}, all);
  ASSERT_EQ(overrides.size(), 4u);
  EXPECT_EQ(overrides[0].match, "blocks.*.up");
  EXPECT_EQ(overrides[0].gemms, (Choice{true, false, false}));
  EXPECT_EQ(overrides[1].gemms, (Choice{false, false, true}));
  EXPECT_EQ(overrides[2].match, "blocks.1.down") << "the pattern for all blocks would take block 0 too";
  EXPECT_EQ(overrides[2].gemms, (Choice{false, false, true})) << "what was out before needs no override";
  EXPECT_EQ(overrides[3].match, "lm_head");
  EXPECT_EQ(overrides[0].why, "fp8.auto: 3e+03 ms a micro-batch, 4e+03 ms with fprop in FP8");
}

class Fp8AutoRunTest : public ::testing::Test {
 protected:
  Fp8AutoRunTest() {
    write_text(folder);
    config = micro_config(folder);
    config.fp8.measured = true;
    config.model.packed_qkv = false;
  }
  void check_choice(const std::string& backend);

  TemporaryFolder folder;
  RunConfig config;
};

void Fp8AutoRunTest::check_choice(const std::string& backend) {
  config.fp8.overrides = {{"lm_head", {false, true, false}, kBf16},
                          {"*.out_proj", {true, true, true}, "delayed"}};
  config.model.context = 8;  // the emulation is slow
  config.model.layers = 1;
  config.model.width = config.model.ffn_width = 16;
  Trainer trainer(testing::make_test_backend(backend), config);
  std::size_t measured = 0;
  for (const MeasuredLinears& group : trainer.measured().linears) {
    measured += group.names.size();
    EXPECT_EQ(group.rows, config.train.batch * config.model.context);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_GT(group.times.fp8[i], 0);
      EXPECT_GT(group.times.bf16[i], 0);
      EXPECT_LE(group.times.total(group.in_fp8), group.times.total(group.allowed));
    }
    EXPECT_GT(group.times.input_fp8, 0);
    EXPECT_GT(group.times.gradient_fp8, 0);
  }
  const auto linears = linears_of(trainer.model());
  EXPECT_EQ(measured, linears.size());
  EXPECT_EQ(trainer.measured().steps.has_value(), trainer.backend().device() != Device::host);
  if (trainer.measured().steps) {
    for (const double time :
         {trainer.measured().steps->fp8, trainer.measured().steps->mixed, trainer.measured().steps->bf16})
      EXPECT_GT(time, 0);
    if (fastest_step(*trainer.measured().steps) == StepChoice::bf16) {
      EXPECT_EQ(trainer.config().fp8.overrides.front().match, "*");
    }
  }
  EXPECT_FALSE(trainer.config().fp8.measured);
  for (const auto& [name, linear] : linears) {
    EXPECT_EQ(linear->policy(), fp8_policy_of(name, trainer.config().fp8, config.model.layers)) << name;
    if (name.ends_with("out_proj")) {
      EXPECT_EQ(linear->policy(), GemmPolicies{}) << "the run file's own overrides win";
    }
  }
  const auto& steps = trainer.measured().steps;
  if (!steps || fastest_step(*steps) != StepChoice::bf16) {
    EXPECT_EQ(linears.back().linear->policy()[1].why_not, "fp8.override of \"lm_head\"");
  }
}

TEST_F(Fp8AutoRunTest, TheChoiceIsTimedAppliedAndPartOfTheConfiguration) {
  for (const char* backend : {"cpu", "reference"}) check_choice(backend);
}

/// The CUDA backend, emulated and real.
class SlowFp8AutoTest : public Fp8AutoRunTest {};

TEST_F(SlowFp8AutoTest, TheChoiceIsTimedAppliedAndPartOfTheConfigurationOnDevices) {
  for (const std::string& backend : testing::test_backends()) {
    if (backend != "cpu" && backend != "reference") check_choice(backend);
  }
}

TEST_F(Fp8AutoRunTest, ItsRunFolderRepeatsTheRunBitByBit) {
  TrainingObserver silent;
  const TrainingResult first = run_training(config, silent);
  RunConfig again = load_run_config(config_path(config.run.dir));
  EXPECT_FALSE(again.fp8.measured);
  again.run.dir = folder.path("again");
  const TrainingResult second = run_training(again, silent);
  EXPECT_EQ(first.train.nats, second.train.nats);
  EXPECT_EQ(read_file(again.run.dir + "/model.safetensors"),
            read_file(config.run.dir + "/model.safetensors"));
  const std::vector<std::string> overrides = {"fp8.auto=true"};
  EXPECT_TRUE(
      contains(error_message(ErrorKind::usage, [&] { load_run(config.run.dir, overrides); }), "fp8.auto"));
}

TEST_F(Fp8AutoRunTest, WithoutFp8NothingIsMeasured) {
  config.precision = Precision::bf16;
  const Trainer trainer(make_backend("cpu", 2), config);
  EXPECT_TRUE(trainer.measured().linears.empty());
  EXPECT_TRUE(trainer.config().fp8.overrides.empty());
}

}  // namespace
}  // namespace quaver
