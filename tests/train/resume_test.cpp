#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>

#include "base/crc32c.h"
#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "support/errors.h"
#include "train/run_folder.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateFiles[] = {"model.safetensors", "fp8_state.safetensors", "optimizer.safetensors"};

/// Asks in chosen steps to stop after them, and remembers what it heard.
class Listener : public TrainingObserver {
 public:
  explicit Listener(std::function<bool(std::int64_t step)> stops_in = [](std::int64_t) { return false; })
      : stops_in_(std::move(stops_in)) {}
  void started(const RunStart& run) override { start = run; }
  void stepped(const StepReport& report) override { last = report.step; }
  void saved(const SaveReport& report) override { saves.push_back(report); }
  bool stop_requested() override { return stops_in_(std::max(start.step, last) + 1); }

  RunStart start;
  std::vector<SaveReport> saves;
  std::int64_t last = 0;

 private:
  std::function<bool(std::int64_t)> stops_in_;
};

std::uint32_t checksum_of(const std::string& path) {
  const std::string bytes = read_file(path);
  return crc32c(std::as_bytes(std::span(bytes)));
}

class ResumeTest : public testing::Test {
 protected:
  ResumeTest() {
    write_text(folder);
    config = micro_config(folder);
    config.train.save_every = 2;
  }

  TrainingResult train(Listener& listener) const { return run_training(config, listener); }
  TrainingResult train() const {
    Listener silent;
    return train(silent);
  }
  /// Runs until `step` is saved.
  void train_until(std::int64_t step) const {
    Listener stopper([=](std::int64_t current) { return current == step; });
    ASSERT_TRUE(train(stopper).stopped);
  }
  void rename_run(const std::string& name) { config.run.dir = folder.path(name); }

  std::string checkpoint(std::int64_t step) const {
    return fmt::format("{}/checkpoints/step-{:08}", config.run.dir, step);
  }
  /// Checksums of the state after the last step.
  std::vector<std::uint32_t> final_state() const {
    std::vector<std::uint32_t> checksums;
    for (const char* name : kStateFiles)
      checksums.push_back(checksum_of(checkpoint(config.train.steps) + "/" + name));
    return checksums;
  }
  /// metrics.jsonl without times.
  std::vector<std::string> metrics() const {
    std::vector<std::string> lines;
    std::istringstream text(read_file(metrics_path(config.run.dir)));
    for (std::string line; std::getline(text, line);) {
      auto json = nlohmann::json::parse(line);
      json.erase("tokens_per_s");
      json.erase("step_ms");
      lines.push_back(json.dump());
    }
    return lines;
  }
  std::string usage_error() const {
    return error_message(ErrorKind::usage, [&] { train(); });
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(ResumeTest, SlowARunStoppedAfterEveryStepEndsInTheSameBits) {
  config.train.steps = 64;
  config.train.accumulation = 2;
  config.train.eval_every = 16;
  config.train.save_every = 0;
  config.model.layers = 1;
  config.model.context = 32;
  config.train.batch = 1;
  rename_run("whole");
  const TrainingResult whole = train();
  const auto state = final_state();
  const auto lines = metrics();

  rename_run("stopped");
  TrainingResult result;
  int lives = 0;
  do {
    Listener stopper([](std::int64_t) { return true; });
    result = train(stopper);
    ++lives;
    EXPECT_EQ(stopper.start.step, lives - 1);
    EXPECT_EQ(result.steps, lives);
  } while (result.stopped);
  EXPECT_EQ(lives, 64);
  EXPECT_EQ(final_state(), state);
  EXPECT_EQ(metrics(), lines);
  EXPECT_EQ(result.train, whole.train);
  EXPECT_EQ(result.validation, whole.validation);
}

TEST_F(ResumeTest, SlowEveryPrecisionGateAndRecipeGoesOnWithTheSameBits) {
  struct Case {
    Precision precision;
    bool packed;
    AmaxCompute algo;
    bool lm_head;
  };
  for (const Case& variant : {Case{Precision::fp8, true, AmaxCompute::max, true},
                              Case{Precision::fp8, false, AmaxCompute::most_recent, false},
                              Case{Precision::bf16, true, AmaxCompute::max, true},
                              Case{Precision::fp32, false, AmaxCompute::max, true}}) {
    config.precision = variant.precision;
    config.model.packed_qkv = config.model.packed_gate_up = variant.packed;
    config.fp8.amax_compute_algo = variant.algo;
    config.fp8.lm_head = variant.lm_head;
    config.fp8.overrides = {{.match = "blocks.0.*", .gemms = {false, false, true}}};
    const std::string name = fmt::format("{}{}", name_of(variant.precision), variant.packed);
    rename_run(name + "-whole");
    train();
    const auto state = final_state();
    rename_run(name + "-stopped");
    train_until(3);
    train();
    EXPECT_EQ(final_state(), state) << name;
  }
}

TEST_F(ResumeTest, SlowOptimizerStateInFewerBitsGoesOnWithTheSameBits) {
  std::vector<std::vector<std::uint32_t>> states;
  using F = StateFormat;
  for (const OptimizerConfig& optimizer :
       std::vector<OptimizerConfig>{{.moments = F::f32},
                                    {.moments = F::bf16},
                                    {.moments = F::fp8},
                                    {.masters = F::bf16},
                                    {.moments = F::fp8, .masters = F::bf16}}) {
    config.optimizer = optimizer;
    const std::string name = fmt::format("state{}", states.size());
    rename_run(name + "-whole");
    train();
    states.push_back(final_state());
    rename_run(name + "-stopped");
    train_until(3);
    config.threads = 3;
    train();
    config.threads = 0;
    EXPECT_EQ(final_state(), states.back()) << name;
  }
  for (std::size_t i = 1; i < states.size(); ++i) EXPECT_NE(states[i], states[i - 1]) << i;
}

TEST_F(ResumeTest, ARunThatIsCompleteEvaluatesAndEnds) {
  const TrainingResult first = train();
  const auto state = final_state();
  Listener listener;
  const TrainingResult again = train(listener);
  EXPECT_EQ(listener.start.step, config.train.steps);
  EXPECT_EQ(listener.last, 0) << "no step was taken";
  EXPECT_EQ(again.steps, first.steps);
  EXPECT_EQ(again.train, first.train);
  EXPECT_EQ(again.validation, first.validation);
  EXPECT_EQ(final_state(), state);
}

TEST_F(ResumeTest, ADamagedCheckpointIsPassedOver) {
  config.train.keep_checkpoints = 3;
  train();
  const auto state = final_state();
  std::string bytes = read_file(checkpoint(6) + "/optimizer.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file_atomically(checkpoint(6) + "/optimizer.safetensors", bytes);
  fs::remove(checkpoint(4) + "/fp8_state.safetensors");
  Listener listener;
  train(listener);
  EXPECT_EQ(listener.start.step, 2);
  ASSERT_EQ(listener.start.damaged.size(), 2u);
  EXPECT_EQ(listener.start.damaged[0].path, checkpoint(6));
  EXPECT_EQ(final_state(), state);
  EXPECT_EQ(metrics().size(), 6u);
  EXPECT_TRUE(fs::exists(checkpoint(6) + ".damaged"));
}

TEST_F(ResumeTest, ARunWithOnlyDamagedCheckpointsIsNotBegunAgain) {
  train_until(2);
  fs::remove(checkpoint(2) + "/model.safetensors");
  const std::uint32_t model = checksum_of(model_path(config.run.dir));
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { train(); }), "none of its checkpoints is whole"));
  EXPECT_EQ(checksum_of(model_path(config.run.dir)), model);
}

TEST_F(ResumeTest, ARunKilledBeforeItsFirstSaveBeginsAgain) {
  train();
  const auto state = final_state();
  rename_run("killed");
  create_run_folder(config);
  AppendFile(metrics_path(config.run.dir)).append(R"({"step":1,"loss":5})");
  train();
  EXPECT_EQ(final_state(), state);
  EXPECT_EQ(metrics().size(), 6u);
}

TEST_F(ResumeTest, AChangedConfigurationIsRefusedKeyByKey) {
  train_until(2);
  const RunConfig original = config;
  config.train.lr = 0.5f;
  config.model.rope_theta = 99;
  const std::string message = usage_error();
  EXPECT_TRUE(contains(message, "train.lr = 0.003, not 0.5")) << message;
  EXPECT_TRUE(contains(message, "model.rope_theta = 10000.0, not 99.0")) << message;
  EXPECT_TRUE(contains(message, "Hint")) << message;
  config = original;
  config.fp8.overrides = {{"lm_head", {true, true, true}, kBf16}};
  EXPECT_TRUE(contains(usage_error(), "fp8.override"));
  config = original;
  config.train.steps = 1;
  EXPECT_TRUE(contains(usage_error(), "train.steps"));
  EXPECT_EQ(load_run_config(config_path(config.run.dir)), original) << "nothing was written";
}

TEST_F(ResumeTest, KeysOfReportingAndPlaceMayChange) {
  train_until(2);
  const std::string moved = folder.path("moved"), text = folder.path("moved-text");
  fs::rename(config.run.dir, moved);
  fs::rename(config.data.path, text);
  config.run.dir = moved;
  config.data.path = text;
  config.threads = 1;
  config.train.steps = 5;
  config.train.save_every = 1;
  config.train.log_every = 1;
  config.train.eval_every = 2;
  config.train.eval_batches = 1;
  config.train.keep_checkpoints = 1;
  EXPECT_EQ(train().steps, 5);
  EXPECT_EQ(load_run_config(config_path(moved)), config);
}

TEST_F(ResumeTest, OtherTextIsRefused) {
  train_until(2);
  folder.write("text/03.txt", "these are other words, of which the run knows nothing\n");
  EXPECT_TRUE(contains(usage_error(), "does not hold the tokens"));
}

TEST_F(ResumeTest, ResumeNoneRefusesAFolderWithARun) {
  train_until(2);
  config.resume = kResumeNone;
  EXPECT_TRUE(contains(usage_error(), "already holds a run"));
  rename_run("new");
  EXPECT_EQ(train().steps, 6);
}

TEST_F(ResumeTest, APathBeginsANewRunAtThatCheckpoint) {
  config.train.keep_checkpoints = 3;
  train();
  const auto state = final_state();
  const std::string origin = checkpoint(2);
  config.resume = origin;
  EXPECT_TRUE(contains(usage_error(), "already holds a run"));
  rename_run("branch");
  Listener listener([](std::int64_t step) { return step == 4; });
  train(listener);
  EXPECT_EQ(listener.start.step, 2);
  EXPECT_EQ(listener.start.checkpoint, origin);
  config.resume = kResumeAuto;
  train();
  EXPECT_EQ(final_state(), state);
  EXPECT_EQ(metrics().size(), 4u) << "steps 3 to 6";

  rename_run("from-newest");
  config.resume = folder.path("branch");
  Listener newest;
  train(newest);
  EXPECT_EQ(newest.start.step, 6);
  config.resume = folder.path("text");
  rename_run("nowhere");
  EXPECT_TRUE(contains(usage_error(), "not a checkpoint"));
}

TEST_F(ResumeTest, ABranchKilledBeforeItsFirstSaveBeginsAtItsOriginAgain) {
  train_until(2);
  const std::string origin = checkpoint(2);
  rename_run("branch");
  config.resume = origin;
  create_run_folder(config);
  config.resume = kResumeAuto;
  Listener listener;
  train(listener);
  EXPECT_EQ(listener.start.checkpoint, origin);
  EXPECT_EQ(metrics().size(), 4u);
}

TEST_F(ResumeTest, TheNewestCheckpointsAreKeptAndPublished) {
  Listener listener;
  train(listener);
  PosixFileSystem files;
  EXPECT_EQ(CheckpointStore(files, checkpoints_path(config.run.dir)).steps(),
            (std::vector<std::int64_t>{4, 6}));
  for (const char* name : {"model.safetensors", "fp8_state.safetensors"})
    EXPECT_EQ(checksum_of(config.run.dir + "/" + name), checksum_of(checkpoint(6) + "/" + name));
  ASSERT_EQ(listener.saves.size(), 3u);
  for (const SaveReport& save : listener.saves) {
    EXPECT_EQ(save.error, "");
    EXPECT_GT(save.bytes, 100000u);
    EXPECT_GT(save.seconds, 0);
  }
  EXPECT_EQ(load_run(checkpoint(4)).step, 4) << "a checkpoint is a run that can be evaluated";
}

TEST_F(ResumeTest, AFileAsksForASave) {
  config.train.save_every = 0;
  Listener first([](std::int64_t step) { return step == 1; });
  train(first);
  const std::string request = config.run.dir + "/save";
  write_file_atomically(request, "");
  config.train.keep_checkpoints = 9;
  Listener listener;
  train(listener);
  EXPECT_FALSE(fs::exists(request));
  ASSERT_EQ(listener.saves.size(), 2u);
  EXPECT_EQ(listener.saves[0].step, 2);
  EXPECT_EQ(listener.saves[1].step, 6);
}

TEST_F(ResumeTest, AFailedSaveIsReportedAndTheLastOneIsAnError) {
  train_until(2);
  struct Blocker : Listener {
    explicit Blocker(std::string path) : path_(std::move(path)) {}
    // From then on "checkpoints" is a file.
    void gradients_ready(std::int64_t step, LanguageModel&) override {
      if (step != 3) return;
      fs::rename(path_, path_ + ".aside");
      write_file_atomically(path_, "in the way");
    }
    std::string path_;
  } blocker(checkpoints_path(config.run.dir));
  const std::string message = error_message(ErrorKind::failure, [&] { train(blocker); });
  ASSERT_EQ(blocker.saves.size(), 2u);
  EXPECT_EQ(blocker.last, 6) << "training went on after the failed save of step 4";
  EXPECT_EQ(message, blocker.saves[1].error);
  EXPECT_EQ(load_run(config.run.dir).step, 2) << "the model saved before is untouched";
}

TEST_F(ResumeTest, TwoProcessesCannotWriteOneRun) {
  train_until(2);
  const FolderLock other(config.run.dir);
  EXPECT_TRUE(contains(usage_error(), "another process"));
}

TEST_F(ResumeTest, TheChoiceOfFp8AutoIsKept) {
  config.fp8.measured = true;
  Listener first([](std::int64_t step) { return step == 2; });
  train(first);
  const RunConfig chosen = load_run_config(config_path(config.run.dir));
  EXPECT_FALSE(chosen.fp8.measured);
  Listener second;
  train(second);
  EXPECT_EQ(second.start.step, 2);
  EXPECT_TRUE(second.start.measured.linears.empty());
  EXPECT_EQ(load_run_config(config_path(config.run.dir)).fp8, chosen.fp8);
}

}  // namespace
}  // namespace quaver
