#include "train/training_run.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/files.h"
#include "support/errors.h"
#include "train/run_folder.h"
#include "train/run_precision.h"
#include "training_support.h"

namespace quaver {
namespace {

class TrainingRunTest : public testing::Test {
 protected:
  TrainingRunTest() {
    write_text(folder);
    config = micro_config(folder);
  }
  std::string file(const std::string& name) const { return config.run.dir + "/" + name; }

  TemporaryFolder folder;
  RunConfig config;
  TrainingObserver silent;
};

double loaded_validation_loss(const std::string& run, std::span<const std::string> overrides = {}) {
  const LoadedRun loaded = load_run(run, overrides);
  Context context(loaded.model->backend(), activation_dtype(loaded.config.precision));
  return evaluate(*loaded.model, context, run_recipe(loaded.config), validation_batches(loaded.config),
                  loaded.config.train.eval_batches)
      .nats;
}

TEST_F(TrainingRunTest, SlowALoadedModelEvaluatesToTheSameBits) {
  int run = 0;
  for (const Precision precision : {Precision::fp8, Precision::bf16, Precision::fp32}) {
    for (const bool lm_head : {true, false}) {
      config.precision = precision;
      config.fp8.lm_head = lm_head;
      config.model.packed_qkv = lm_head;
      config.run.dir = folder.path("run" + std::to_string(run++));
      const TrainingResult result = run_training(config, silent);
      EXPECT_EQ(loaded_validation_loss(config.run.dir), result.validation->nats)
          << name_of(precision) << lm_head;
    }
  }
}

TEST_F(TrainingRunTest, SavingALoadedModelWritesTheSameBytes) {
  run_training(config, silent);
  const LoadedRun loaded = load_run(config.run.dir);
  RunConfig copy = config;
  copy.run.dir = folder.path("copy");
  create_run_folder(copy);
  save_model(copy, *loaded.model, loaded.step);
  for (const std::string name : {"model.safetensors", "fp8_state.safetensors"}) {
    EXPECT_EQ(read_file(copy.run.dir + "/" + name), read_file(file(name))) << name;
  }
}

TEST_F(TrainingRunTest, TwoRunsWriteTheSameModel) {
  run_training(config, silent);
  const std::string first = read_file(file("model.safetensors")),
                    state = read_file(file("fp8_state.safetensors"));
  config.run.dir = folder.path("second");
  run_training(config, silent);
  EXPECT_EQ(read_file(file("model.safetensors")), first);
  EXPECT_EQ(read_file(file("fp8_state.safetensors")), state);
}

TEST_F(TrainingRunTest, MetricsHaveOneObjectAStep) {
  config.train.eval_every = 4;
  const TrainingResult result = run_training(config, silent);
  const auto lines = read_metrics(config);
  ASSERT_EQ(lines.size(), 6u);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i].at("step"), i + 1);
    for (const char* key : {"loss", "lr", "grad_norm", "tokens_per_s", "step_ms"})
      EXPECT_GT(lines[i].at(key), 0) << key;
    for (const char* key : {"fp8_cast", "fp8_saturated", "fp8_underflowed"})
      EXPECT_GE(lines[i].at(key), 0) << key;
    const bool evaluated = i + 1 == 4 || i + 1 == 6;
    EXPECT_EQ(lines[i].contains("val_loss"), evaluated);
    EXPECT_EQ(lines[i].contains("val_bpb"), evaluated);
  }
  EXPECT_EQ(lines[1].at("lr"), 0.003);
  EXPECT_EQ(lines.back().at("val_loss"), result.validation->mean());
  EXPECT_EQ(result.steps, 6);
}

TEST_F(TrainingRunTest, TheResolvedConfigurationIsStored) {
  run_training(config, silent);
  EXPECT_EQ(load_run_config(config_path(config.run.dir)), config);
}

/// Injects a NaN at one step.
class Saboteur : public TrainingObserver {
 public:
  explicit Saboteur(std::int64_t step) : step_(step) {}
  void gradients_ready(std::int64_t step, LanguageModel& model) override {
    if (step == step_) inject_nan(model);
  }

 private:
  std::int64_t step_;
};

TEST_F(TrainingRunTest, ANanInAGradientKeepsTheLastSavedModel) {
  config.train.save_every = 2;
  Saboteur saboteur(4);
  const std::string message = error_message(ErrorKind::non_finite, [&] { run_training(config, saboteur); });
  EXPECT_TRUE(contains(message, "step 4: loss ")) << message;
  EXPECT_EQ(load_run(config.run.dir).step, 2);
  EXPECT_EQ(read_metrics(config).size(), 3u);
  EXPECT_GT(loaded_validation_loss(config.run.dir), 0);
}

class Stopper : public TrainingObserver {
 public:
  void stepped(const StepReport& report) override { last = report.step; }
  bool stop_requested() override { return last == 1; }
  std::int64_t last = 0;
};

TEST_F(TrainingRunTest, AStopOnRequestSaves) {
  Stopper stopper;
  const TrainingResult result = run_training(config, stopper);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.steps, 2);
  EXPECT_FALSE(result.validation) << "whoever stops a run wants it to end now";
  EXPECT_EQ(load_run(config.run.dir).step, 2);
}

TEST_F(TrainingRunTest, AFullDiskLeavesTheEarlierModel) {
  run_training(config, silent);
  const LoadedRun loaded = load_run(config.run.dir);
  const std::string model = read_file(file("model.safetensors")),
                    state = read_file(file("fp8_state.safetensors"));
  for (const std::string name : {"model.safetensors", "fp8_state.safetensors"}) {
    std::filesystem::create_symlink("/dev/full", file(name + ".next.tmp"));
    const std::string message =
        error_message(ErrorKind::failure, [&] { save_model(config, *loaded.model, loaded.step + 1); });
    EXPECT_TRUE(contains(message, "No space left on device")) << message;
    EXPECT_EQ(read_file(file("model.safetensors")), model);
    EXPECT_EQ(read_file(file("fp8_state.safetensors")), state);
    for (const auto& entry : std::filesystem::directory_iterator(config.run.dir)) {
      EXPECT_FALSE(contains(entry.path().string(), ".next")) << entry.path();
    }
  }
}

TEST_F(TrainingRunTest, DamagedRunsAreRefused) {
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { load_run(folder.path("nowhere")); }),
                       "not a run folder"));
  run_training(config, silent);
  const LoadedRun loaded = load_run(config.run.dir);

  const std::vector<std::string> wider = {"model.width=48"};
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { load_run(config.run.dir, wider); }),
                       "expected f32 [257, 48]"));
  const std::vector<std::string> longer = {"fp8.amax_history_len=5"};
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { load_run(config.run.dir, longer); }),
                       "amax_history_len"));

  const std::string state = read_file(file("fp8_state.safetensors"));
  save_model(config, *loaded.model, loaded.step + 1);
  write_file_atomically(file("fp8_state.safetensors"), state);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { load_run(config.run.dir); }), "saving was interrupted"));
  std::filesystem::remove(file("fp8_state.safetensors"));
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { load_run(config.run.dir); }), "fp8_state.safetensors"));
  std::filesystem::remove(file("model.safetensors"));
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { load_run(config.run.dir); }), "before its first save"));
}

TEST_F(TrainingRunTest, NothingIsWrittenWhenTheTextIsMissing) {
  config.data.path = folder.path("nowhere");
  error_message(ErrorKind::data, [&] { run_training(config, silent); });
  EXPECT_FALSE(std::filesystem::exists(config.run.dir));
}

}  // namespace
}  // namespace quaver
