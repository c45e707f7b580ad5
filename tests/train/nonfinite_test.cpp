/// A NaN or an infinity, wherever it arises, never reaches a weight, a moment or a scale.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "ops/reference/reference_backend.h"
#include "support/errors.h"
#include "train/fp8_state.h"
#include "train/run_folder.h"
#include "train/run_verification.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

enum class Place { residual, projection, input_gradient, weight_gradient, attention, hidden, losses };
constexpr std::array kPlaces = {Place::residual,        Place::projection, Place::input_gradient,
                                Place::weight_gradient, Place::attention,  Place::hidden,
                                Place::losses};

/// Puts a value into one tensor, once, when it is computed for the chosen time.
class FaultyBackend : public ReferenceBackend {
 public:
  void arm(Place place, float value, int calls_before) {
    place_ = place, value_ = value, calls_before_ = calls_before, armed_ = true;
  }
  bool armed() const { return armed_; }

  void rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                const Tensor& rstd) override {
    strike(Place::residual, x.x);
    ReferenceBackend::rms_norm(x, gain, epsilon, y, rstd);
  }
  void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias, bool accumulate,
            const Tensor& out) override {
    ReferenceBackend::gemm(kind, a, b, bias, accumulate, out);
    strike(kind == Gemm::fprop   ? Place::projection
           : kind == Gemm::dgrad ? Place::input_gradient
                                 : Place::weight_gradient,
           out);
  }
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                 const Tensor& first_key, const Tensor& out, const Tensor& lse) override {
    ReferenceBackend::attention(shape, q, k, v, first_key, out, lse);
    strike(Place::attention, out);
  }
  void activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) override {
    strike(Place::hidden, up);
    ReferenceBackend::activation(kind, gate, up, h);
  }
  void cross_entropy(const Tensor& logits, const Tensor& targets, float scale, const Tensor& losses,
                     const Output& dlogits) override {
    ReferenceBackend::cross_entropy(logits, targets, scale, losses, dlogits);
    strike(Place::losses, losses);
  }

 private:
  void strike(Place place, const Tensor& tensor) {
    if (!armed_ || place != place_ || calls_before_-- > 0) return;
    armed_ = false;
    if (tensor.dtype() == DType::bf16) {
      tensor.data<bf16>()[0] = to_bf16(value_);
    } else {
      tensor.data<float>()[0] = value_;
    }
  }

  Place place_{};
  float value_ = 0;
  int calls_before_ = 0;
  bool armed_ = false;
};

/// All that a step may change, as bits.
struct State {
  std::vector<std::vector<float>> weights, moments;
  std::vector<std::vector<std::byte>> scales;
  friend bool operator==(const State&, const State&) = default;
};

State state_of(Trainer& trainer) {
  State state;
  for (const AdamW::Entry& entry : trainer.optimizer().entries()) {
    state.weights.push_back(download(trainer.backend(), entry.parameter->value));
    for (const Tensor& moment : {entry.m, entry.v})
      state.moments.push_back(download(trainer.backend(), moment));
  }
  for (const auto& array : to_safetensors(capture_fp8_state(trainer.backend(), trainer.model())).arrays)
    state.scales.push_back(array.bytes);
  return state;
}

class NonFiniteTest : public testing::Test {
 protected:
  NonFiniteTest() {
    write_text(folder);
    config = micro_config(folder);
    config.model.width = 16;
    config.model.head_dim = 4;
    config.model.ffn_width = 24;
    config.model.context = 12;
    config.train.batch = 1;
    config.train.nonfinite = NonFinite::skip;
  }
  std::unique_ptr<Trainer> make_trainer() {
    backend = std::make_shared<FaultyBackend>();
    return std::make_unique<Trainer>(backend, config);
  }
  /// The two micro-batches of a step.
  StepResult take(Trainer& trainer, std::int64_t step) const {
    const BatchSource source = training_batches(config);
    const std::vector<HostBatch> batches{source.at(2 * step), source.at(2 * step + 1)};
    return trainer.step(1e-2f, batches);
  }
  static void expect_finite(const State& state) {
    for (const auto* tensors : {&state.weights, &state.moments}) {
      for (const auto& tensor : *tensors) {
        for (const float x : tensor) ASSERT_TRUE(std::isfinite(x));
      }
    }
  }

  TemporaryFolder folder;
  RunConfig config;
  std::shared_ptr<FaultyBackend> backend;
};

TEST_F(NonFiniteTest, ASkippedStepIsAsIfItNeverWas) {
  const State expected = [&] {
    const auto trainer = make_trainer();
    for (const std::int64_t step : {0, 2}) take(*trainer, step);
    return state_of(*trainer);
  }();
  for (const Place place : kPlaces) {
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      // Calls before reach a later module or the second micro-batch.
      for (const int calls_before : {0, place == Place::losses ? 1 : 2}) {
        const auto trainer = make_trainer();
        take(*trainer, 0);
        const State before = state_of(*trainer);
        backend->arm(place, value, calls_before);
        const StepResult result = take(*trainer, 1);
        const std::string what =
            fmt::format("{} at place {}, after {} calls", value, static_cast<int>(place), calls_before);
        EXPECT_FALSE(backend->armed()) << what;
        EXPECT_FALSE(result.skipped.empty()) << what;
        EXPECT_EQ(state_of(*trainer), before) << what;
        EXPECT_EQ(trainer->steps(), 1);
        EXPECT_TRUE(take(*trainer, 2).skipped.empty()) << what;
        EXPECT_EQ(state_of(*trainer), expected) << what;
      }
    }
  }
}

TEST_F(NonFiniteTest, TheFirstStepToo) {
  for (const Place place : {Place::projection, Place::weight_gradient}) {
    const auto trainer = make_trainer();
    backend->arm(place, std::numeric_limits<float>::infinity(), 3);
    EXPECT_FALSE(take(*trainer, 0).skipped.empty());
    take(*trainer, 1);
    const auto other = make_trainer();
    take(*other, 1);
    EXPECT_EQ(state_of(*trainer), state_of(*other));
  }
}

TEST_F(NonFiniteTest, AnInfinityThatFp8SaturatesIsFound) {
  // Cast to FP8 it becomes the largest number, and the loss and all gradients are finite.
  const auto trainer = make_trainer();
  take(*trainer, 0);
  backend->arm(Place::hidden, std::numeric_limits<float>::infinity(), 0);
  const StepResult result = take(*trainer, 1);
  EXPECT_TRUE(std::isfinite(result.loss.nats));
  EXPECT_GE(result.casts.infinite, 1);
  EXPECT_TRUE(contains(result.skipped, "infinities cast to FP8")) << result.skipped;
}

TEST_F(NonFiniteTest, InOtherPrecisionsNothingThatIsNotFiniteIsStored) {
  for (const Precision precision : {Precision::bf16, Precision::fp32}) {
    config.precision = precision;
    for (const Place place : kPlaces) {
      const auto trainer = make_trainer();
      take(*trainer, 0);
      const State before = state_of(*trainer);
      backend->arm(place, std::numeric_limits<float>::quiet_NaN(), 0);
      EXPECT_FALSE(take(*trainer, 1).skipped.empty());
      EXPECT_EQ(state_of(*trainer), before);
      take(*trainer, 2);
      expect_finite(state_of(*trainer));
    }
  }
}

TEST_F(NonFiniteTest, StopThrowsAndLeavesTheSameState) {
  config.train.nonfinite = NonFinite::stop;
  for (const Place place : {Place::residual, Place::input_gradient, Place::losses}) {
    const auto trainer = make_trainer();
    take(*trainer, 0);
    const State before = state_of(*trainer);
    backend->arm(place, std::numeric_limits<float>::quiet_NaN(), 0);
    const std::string message = error_message(ErrorKind::non_finite, [&] { take(*trainer, 1); });
    EXPECT_TRUE(contains(message, "step 2: loss ")) << message;
    EXPECT_EQ(state_of(*trainer), before);
  }
}

TEST_F(NonFiniteTest, AGradientTooLargeToBeSquaredIsRefusedWithoutClipping) {
  config.train.clip = 0;
  const auto trainer = make_trainer();
  take(*trainer, 0);
  const State before = state_of(*trainer);
  backend->arm(Place::weight_gradient, 1e25f, 0);
  EXPECT_FALSE(take(*trainer, 1).skipped.empty());
  EXPECT_EQ(state_of(*trainer), before);
}

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

class NonFiniteRunTest : public NonFiniteTest {
 protected:
  std::string final_state() const {
    std::string bytes;
    for (const char* name : {"model", "fp8_state", "optimizer"}) {
      bytes += read_file(
          fmt::format("{}/checkpoints/step-{:08}/{}.safetensors", config.run.dir, config.train.steps, name));
    }
    return bytes;
  }
  std::vector<nlohmann::json> metrics() const {
    std::vector<nlohmann::json> lines;
    std::istringstream text(read_file(metrics_path(config.run.dir)));
    for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }
};

TEST_F(NonFiniteRunTest, SkippedStepsAreLoggedAndTheRunEnds) {
  Saboteur saboteur({2, 5});
  const TrainingResult result = run_training(config, saboteur);
  EXPECT_EQ(result.steps, 6);
  EXPECT_EQ(result.skipped, 2);
  EXPECT_TRUE(std::isfinite(result.train.nats));
  const auto lines = metrics();
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
