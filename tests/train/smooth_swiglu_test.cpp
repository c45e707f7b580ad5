/// fp8.smooth_swiglu: training, resume, and what is refused. What it computes is tested in nn/linear_smoothing_test.cpp.
#include <gtest/gtest.h>

#include "base/files.h"
#include "support/errors.h"
#include "train/fp8_policy.h"
#include "train/fp8_state.h"
#include "train/run_folder.h"
#include "train/run_verification.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

class SmoothSwiglu : public ::testing::Test {
 protected:
  SmoothSwiglu() {
    write_text(folder);
    config = micro_config(folder);
    config.fp8.smooth_swiglu = true;
  }
  std::vector<double> losses(int steps, const std::string& backend, int threads) {
    Trainer trainer(make_backend(backend, threads), config);
    BatchSource batches = training_batches(config);
    std::vector<double> values;
    for (int step = 0; step < steps; ++step) {
      const HostBatch batch = batches.at(step);
      values.push_back(trainer.step(config.train.lr, std::span(&batch, 1)).loss.mean());
    }
    return values;
  }
  std::string refusal() {
    return error_message(ErrorKind::usage, [&] { Trainer(make_backend("cpu", 2), config); });
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(SmoothSwiglu, SlowTheLossFallsAndThreadsDoNotMatter) {
  for (const char* recipe : {"delayed", "current"}) {
    config.fp8.recipe = recipe;
    const auto found = losses(40, "cpu", 2);
    EXPECT_LT(found.back(), 0.75 * found.front()) << recipe << found.front() << " to " << found.back();
    for (const int threads : {1, 3})
      EXPECT_EQ(losses(6, "cpu", threads), std::vector<double>(found.begin(), found.begin() + 6)) << recipe;
    const auto reference = losses(2, "reference", 1);
    for (std::size_t i = 0; i < reference.size(); ++i)
      EXPECT_NEAR(found[i], reference[i], 0.02) << recipe << i;
  }
}

TEST_F(SmoothSwiglu, EveryDownProjAndNothingElseIsSmoothed) {
  Trainer trainer(make_backend("cpu", 2), config);
  const HostBatch batch = training_batches(config).at(0);
  trainer.step(1e-3f, std::span(&batch, 1));
  int smoothed = 0;
  for (const auto& [name, linear] : linears_of(trainer.model())) {
    EXPECT_EQ(linear->smooths_input(), name.ends_with("mlp.down_proj")) << name;
    EXPECT_EQ(static_cast<bool>(linear->fp8().channels), linear->smooths_input()) << name;
    smoothed += linear->smooths_input();
  }
  EXPECT_EQ(smoothed, 2);
  EXPECT_NO_THROW(require_strict_fp8(trainer.model()));
}

TEST_F(SmoothSwiglu, SlowAStoppedRunGoesOnWithTheSameBits) {
  class StopAt : public TrainingObserver {
   public:
    void stepped(const StepReport& report) override { last_ = report.step; }
    bool stop_requested() override { return last_ == 3; }

   private:
    std::int64_t last_ = 0;
  };
  config.train.accumulation = 2;
  config.train.eval_every = 2;
  for (const char* recipe : {"delayed", "current"}) {
    config.fp8.recipe = recipe;
    TrainingObserver silent;
    config.run.dir = folder.path(std::string("whole ") + recipe);
    const std::string whole_dir = config.run.dir;
    const TrainingResult whole = run_training(config, silent);
    config.run.dir = folder.path(std::string("stopped ") + recipe);
    StopAt stop;
    ASSERT_TRUE(run_training(config, stop).stopped);
    const TrainingResult resumed = run_training(config, silent);
    EXPECT_EQ(resumed.validation, whole.validation);
    for (const auto& path_of : {model_path, fp8_state_path})
      EXPECT_TRUE(read_file(path_of(config.run.dir)) == read_file(path_of(whole_dir))) << path_of(whole_dir);
    PosixFileSystem files;
    EXPECT_EQ(verify_run(files, config.run.dir).damaged(), 0);

    // What was saved evaluates to the same loss: the scales of channels are part of it.
    EXPECT_EQ(evaluate_saved(config).nats, whole.validation->nats);
    for (const LinearState& state : load_fp8_state(config.run.dir))
      EXPECT_EQ(!state.channel_scales.empty(), state.name.ends_with("down_proj")) << state.name;
  }
}

TEST_F(SmoothSwiglu, StatesThatAreNoChannelScalesAreRefused) {
  Trainer trainer(make_backend("cpu", 2), config);
  const HostBatch batch = training_batches(config).at(0);
  trainer.step(1e-3f, std::span(&batch, 1));
  const auto states = capture_fp8_state(trainer.backend(), trainer.model());
  EXPECT_EQ(to_safetensors(fp8_state_from(to_safetensors(states), "x")).arrays.size(),
            to_safetensors(states).arrays.size());
  const auto refused = [&](const std::function<void(std::vector<float>&)>& damage) {
    auto damaged = states;
    for (LinearState& state : damaged) {
      if (!state.channel_scales.empty()) damage(state.channel_scales);
    }
    return error_message(ErrorKind::data,
                         [&] { restore_fp8_state(trainer.backend(), trainer.model(), damaged); });
  };
  for (const float value : {3.0f, 0.0f, -2.0f, std::numeric_limits<float>::infinity()}) {
    EXPECT_TRUE(contains(refused([&](auto& scales) { scales[1] = value; }),
                         "blocks.0.mlp.down_proj.input: expected 64 channel scales, powers of two"))
        << value;
  }
  EXPECT_TRUE(contains(refused([](auto& scales) { scales.pop_back(); }), "found 63 numbers"));
}

TEST_F(SmoothSwiglu, IsRefusedWhereItCouldDoNothing) {
  config.fp8.recipe = "mxfp8";
  EXPECT_TRUE(contains(refusal(), "fp8.smooth_swiglu: expected fp8.recipe = \"delayed\" or \"current\""))
      << refusal();
  config.fp8.overrides = {{.match = "blocks.0.mlp.down_proj", .recipe = "current"}};
  EXPECT_NO_THROW(Trainer(make_backend("cpu", 2), config)) << "one module profits";
  config.fp8 = Fp8Config{};
  config.fp8.smooth_swiglu = true;
  config.model.mlp = Activation::gelu;
  EXPECT_TRUE(contains(refusal(), "no product of two projections")) << refusal();
  config.model.mlp = Activation::geglu;
  for (const bool packed : {false, true}) {
    config.model.packed_gate_up = packed;
    EXPECT_NO_THROW(Trainer(make_backend("cpu", 2), config));
  }
  config.fp8.overrides = {{.match = "*.down_proj"}};
  EXPECT_NO_THROW(Trainer(make_backend("cpu", 2), config)) << "in BF16 there is nothing to smooth";
}

TEST_F(SmoothSwiglu, IsAKeyOfRunFiles) {
  const RunConfig read = parse_run_config("[data]\npath = \"d\"\n[fp8]\nsmooth_swiglu = true\n", "x.toml");
  EXPECT_TRUE(read.fp8.smooth_swiglu);
  EXPECT_EQ(parse_run_config(to_toml(read), "y.toml"), read);
  EXPECT_FALSE(parse_run_config("[data]\npath = \"d\"\n", "x.toml").fp8.smooth_swiglu);
}

}  // namespace
}  // namespace quaver
