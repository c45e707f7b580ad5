/// Runs whose gradients are not finite in some steps: what is logged, resumed and verified.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/files.h"
#include "support/errors.h"
#include "train/run_folder.h"
#include "train/run_verification.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

/// Injects a NaN in the gradients of some steps, and may stop.
class Saboteur : public TrainingObserver {
 public:
  explicit Saboteur(std::set<std::int64_t> steps, std::int64_t stop_after = 0)
      : steps_(std::move(steps)), stop_after_(stop_after) {}
  void gradients_ready(std::int64_t step, LanguageModel& model) override {
    step_ = step;
    if (steps_.contains(step)) inject_nan(model);
  }
  bool stop_requested() override { return step_ == stop_after_; }

 private:
  std::set<std::int64_t> steps_;
  std::int64_t stop_after_, step_ = -1;
};

class NonFiniteRunTest : public ::testing::Test {
 protected:
  NonFiniteRunTest() {
    write_text(folder);
    config = micro_config(folder);
    config.train.nonfinite = NonFinite::skip;
  }
  std::string final_state() const {
    std::string bytes;
    for (const char* name : {"model", "fp8_state", "optimizer"}) {
      bytes += read_file(
          fmt::format("{}/checkpoints/step-{:08}/{}.safetensors", config.run.dir, config.train.steps, name));
    }
    return bytes;
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(NonFiniteRunTest, SkippedStepsAreLoggedAndTheRunEnds) {
  Saboteur saboteur({2, 5});
  const TrainingResult result = run_training(config, saboteur);
  EXPECT_EQ(result.steps, 6);
  EXPECT_EQ(result.skipped, 2);
  EXPECT_TRUE(std::isfinite(result.train.nats));
  const auto lines = read_metrics(config);
  ASSERT_EQ(lines.size(), 6u);
  for (const auto& line : lines) {
    const bool skipped = line["step"] == 2 || line["step"] == 5;
    ASSERT_EQ(line.contains("skipped"), skipped) << line.dump();
    if (skipped) {
      EXPECT_TRUE(contains(line["skipped"], "gradient norm nan")) << line.dump();
    }
    EXPECT_EQ(line["grad_norm"].is_null(), skipped);
  }
  PosixFileSystem files;
  EXPECT_EQ(verify_run(files, config.run.dir).damaged(), 0);
}

TEST_F(NonFiniteRunTest, ARunThatIsResumedAfterASkipEndsInTheSameBits) {
  config.run.dir = folder.path("whole");
  Saboteur whole({2, 3});
  run_training(config, whole);
  const std::string expected = final_state();
  config.run.dir = folder.path("stopped");
  Saboteur first({2, 3}, 3), second({2, 3});
  EXPECT_TRUE(run_training(config, first).stopped);
  EXPECT_EQ(run_training(config, second).skipped, 2);
  EXPECT_EQ(final_state() == expected, true);
}

TEST_F(NonFiniteRunTest, TooManySkipsInARowEndTheRun) {
  config.train.max_skips = 2;
  Saboteur apart({2, 4, 6});
  EXPECT_EQ(run_training(config, apart).skipped, 3);
  config.run.dir = folder.path("in a row");
  Saboteur together({3, 4});
  const std::string message = error_message(ErrorKind::non_finite, [&] { run_training(config, together); });
  EXPECT_TRUE(contains(message, "step 4: ")) << message;
  EXPECT_TRUE(contains(message, "train.max_skips")) << message;
}

}  // namespace
}  // namespace quaver
