/// Every recipe that a run file can name: trains, is saved, goes on with the same bits, and does not depend on threads.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/files.h"
#include "support/emulated_backend.h"
#include "support/errors.h"
#include "support/test_backends.h"
#include "train/fp8_policy.h"
#include "train/fp8_recipes.h"
#include "train/run_folder.h"
#include "train/run_precision.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

class RecipeTraining : public ::testing::TestWithParam<std::string> {
 protected:
  RecipeTraining() {
    write_text(folder);
    config = micro_config(folder);
    config.fp8.recipe = GetParam();
    config.model.packed_qkv = false;
  }
  /// Losses of so many steps.
  std::vector<double> losses(int steps, const RunConfig& run, const std::string& backend = "cpu",
                             int threads = 2) {
    Trainer trainer(make_backend(backend, threads), run);
    BatchSource batches = training_batches(run);
    std::vector<double> values;
    for (int step = 0; step < steps; ++step) {
      const HostBatch batch = batches.at(static_cast<std::uint64_t>(step));
      values.push_back(trainer.step(run.train.lr, std::span(&batch, 1)).loss.mean());
    }
    return values;
  }

  TemporaryFolder folder;
  RunConfig config;
};
INSTANTIATE_TEST_SUITE_P(Recipes, RecipeTraining, ::testing::ValuesIn(recipe_names()),
                         [](const auto& test) { return test.param; });

TEST_P(RecipeTraining, SlowTheLossFallsAndThreadsDoNotMatter) {
  const auto found = losses(40, config);
  EXPECT_LT(found.back(), 0.75 * found.front()) << found.front() << " to " << found.back();
  EXPECT_EQ(losses(6, config, "cpu", 1), std::vector<double>(found.begin(), found.begin() + 6));
}

TEST_P(RecipeTraining, TheReferenceTrainsAlike) {
  const auto cpu = losses(2, config), reference = losses(2, config, "reference");
  // Norms and attention of the two differ in their last bits, which casts turn into steps of a code here and there.
  for (std::size_t i = 0; i < cpu.size(); ++i) EXPECT_NEAR(cpu[i], reference[i], 0.02) << i;
}

TEST_P(RecipeTraining, AStoppedRunGoesOnWithTheSameBits) {
  config.train.accumulation = 2;
  class StopAt : public TrainingObserver {
   public:
    explicit StopAt(std::int64_t step) : step_(step) {}
    void stepped(const StepReport& report) override { last_ = report.step; }
    bool stop_requested() override { return last_ + 1 == step_; }

   private:
    std::int64_t step_, last_ = 0;
  };
  const auto parameters = [&](const std::string& name) {
    const LoadedRun run = load_run(folder.path(name));
    return parameters_of(run.model->backend(), *run.model);
  };
  TrainingObserver silent;
  config.run.dir = folder.path("whole");
  const TrainingResult whole = run_training(config, silent);
  config.run.dir = folder.path("stopped");
  StopAt stop(3);
  ASSERT_TRUE(run_training(config, stop).stopped);
  const TrainingResult resumed = run_training(config, silent);
  EXPECT_EQ(parameters("stopped"), parameters("whole"));
  // Scales, counts of every cast, and what ran.
  EXPECT_TRUE(read_file(fp8_state_path(folder.path("stopped"))) ==
              read_file(fp8_state_path(folder.path("whole"))));
  EXPECT_EQ(resumed.train, whole.train);
  EXPECT_EQ(resumed.validation, whole.validation);

  // What was saved evaluates to the same loss.
  EXPECT_EQ(evaluate_saved(config).nats, whole.validation->nats);
  for (const LinearState& state : load_fp8_state(config.run.dir)) {
    ASSERT_TRUE(state.weight) << state.name;
    EXPECT_EQ(!state.weight->amax_history.empty(), GetParam() == "delayed") << "other recipes only count";
    EXPECT_GT(state.weight->counters.at(kCastElements), 0) << state.name;
    EXPECT_EQ(state.gemms[0].recipe, describe(config.fp8.make_recipe()));
  }
}

TEST_P(RecipeTraining, OverridesMixItWithOthers) {
  config.fp8.overrides = {
      {.match = "*.down_proj", .gemms = {false, true, true}, .recipe = "mxfp8"},
      {.match = "*.up_proj", .recipe = "delayed"},
      {.match = "*.q_proj", .operands = {true, false, false}},
      {.match = "*.k_proj", .gemms = {false, true, false}, .operands = {false, true, true}}};
  Trainer trainer(make_backend("cpu", 2), config);
  const HostBatch batch = training_batches(config).at(0);
  trainer.step(1e-3f, std::span(&batch, 1));
  const std::string own = describe(config.fp8.make_recipe());
  for (const auto& [name, linear] : linears_of(trainer.model())) {
    const auto& gemms = linear->fp8().gemms;
    EXPECT_EQ(gemms[0].recipe,
              name.ends_with("up_proj") ? "delayed(hybrid, margin 0, history 4, most_recent)" : own)
        << name;
    if (name.ends_with("down_proj")) {
      EXPECT_EQ(gemms[1].recipe, "mxfp8(e4m3)");
    }
    if (name.ends_with("q_proj")) {
      EXPECT_EQ(gemms[0].a, DType::bf16);
      EXPECT_NE(gemms[0].b, DType::bf16);
      EXPECT_NE(gemms[1].a, DType::bf16);
      EXPECT_EQ(gemms[2].b, DType::bf16);
    }
    if (name.ends_with("k_proj")) {
      EXPECT_EQ(gemms[1].other_runs, 1) << "both operands of dgrad in BF16 are a product in BF16";
      EXPECT_EQ(linear->policy()[1].why_not, "fp8.override of \"*.k_proj\"");
    }
  }
  EXPECT_NO_THROW(require_strict_fp8(trainer.model()));
}

TEST(RecipesInRunFiles, AreNamed) {
  const auto parse = [](const std::string& text) {
    return parse_run_config("[data]\npath = \"d\"\n" + text, "x.toml");
  };
  const RunConfig config = parse(
      "[fp8]\nrecipe = \"mxfp8\"\nmxfp8_format = \"hybrid\"\n[[fp8.override]]\nmatch = \"a\"\nrecipe = "
      "\"nvfp4\"\n"
      "[[fp8.override]]\nmatch = \"b\"\nrecipe = \"bf16\"\noperand = [\"weight\"]\n");
  EXPECT_EQ(config.fp8.make_recipe(), Recipe(Mxfp8Scaling{Fp8Format::hybrid}));
  EXPECT_EQ(fp8_policy_of("a", config.fp8, 2)[1].recipe, Recipe(Nvfp4Scaling{}));
  EXPECT_TRUE(fp8_policy_of("b", config.fp8, 2)[0].real_operands[1]);
  EXPECT_TRUE(fp8_policy_of("b", config.fp8, 2)[0].fp8);
  EXPECT_EQ(parse_run_config(to_toml(config), "y.toml"), config);
  const auto refused = [&](const std::string& table) {
    return error_message(ErrorKind::usage, [&] { parse("[[fp8.override]]\n" + table); });
  };
  EXPECT_TRUE(contains(refused("match = \"a\"\nrecipe = \"block\"\noperand = [\"weight\"]"),
                       "expected recipe = \"bf16\", found \"block\""));
  EXPECT_TRUE(contains(refused("match = \"a\"\nrecipe = \"bf16\"\noperand = [\"bias\"]"),
                       "expected an array of \"input\", \"weight\", \"grad_output\""));
}

/// Devices that run the recipe, the launch emulation among them.
class RecipesOnDevices : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(SlowInBlocks, RecipesOnDevices, ::testing::Values("block", "mxfp8"),
                         [](const auto& test) { return test.param; });

TEST_P(RecipesOnDevices, TrainsAsOnTheCpu) {
  TemporaryFolder folder;
  write_text(folder);
  RunConfig config = micro_config(folder);
  config.model.context = 8;  // the emulation is slow
  config.fp8.recipe = GetParam();
  const OperandCast cast = cast_of(config.fp8.make_recipe(), OperandRole::input, Gemm::fprop);
  const auto losses = [&](const std::shared_ptr<Backend>& backend) {
    Trainer trainer(backend, config);
    const HostBatch batch = training_batches(config).at(0);
    std::vector<double> values;
    for (int step = 0; step < 2; ++step)
      values.push_back(trainer.step(config.train.lr, std::span(&batch, 1)).loss.mean());
    EXPECT_NO_THROW(require_strict_fp8(trainer.model()));
    return values;
  };
  const std::vector<double> expected = losses(make_backend("cpu", 2));
  for (const std::string& name : testing::test_backends()) {
    const auto backend = testing::make_test_backend(name);
    if (name == "reference" || name == "cpu" || !backend->why_no_cast(cast).empty()) continue;
    const std::vector<double> found = losses(backend);
    // As between cpu and reference: last bits of other sums become codes here and there.
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 0.02) << name << i;
  }
}

TEST(RecipesThatADeviceDoesNotRun, AreRefusedBeforeTheFirstStep) {
  TemporaryFolder folder;
  write_text(folder);
  RunConfig config = micro_config(folder);
  const auto refusal = [&] {
    return error_message(ErrorKind::usage,
                         [&] { Trainer(testing::make_emulated_backend(false, true, 90), config); });
  };
  config.fp8.recipe = "mxfp8";
  EXPECT_TRUE(contains(refusal(), "does not run the recipe mxfp8(e4m3) (input of fprop)")) << refusal();
  EXPECT_TRUE(contains(refusal(), "on sm_100 and newer, this GPU is sm_90")) << refusal();
  config.fp8.recipe = "delayed";
  config.fp8.overrides = {{.match = "lm_head", .recipe = "nvfp4"}};
  EXPECT_TRUE(contains(refusal(), "does not run the recipe nvfp4")) << refusal();
}

TEST(RecipesInRunFiles, AutoTimesDelayedScalingAlone) {
  TemporaryFolder folder;
  write_text(folder);
  RunConfig config = micro_config(folder);
  config.fp8.measured = true;
  config.fp8.recipe = "block";
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { Trainer(make_backend("cpu", 1), config); }),
                       "fp8.auto: times delayed scaling alone; found fp8.recipe = \"block\""));
}

}  // namespace
}  // namespace quaver
