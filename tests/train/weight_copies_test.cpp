/// The optimizer writes what products read of the next weights: bits, amax histories, counters and bookkeeping are those of
/// casts in the forward.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/linear.h"
#include "support/test_backends.h"
#include "train/checkpoint.h"
#include "train/fp8_state.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

/// As if somebody else had written the weights: what the optimizer cast is out of date, and every forward casts for itself.
void forget_copies(Module& module) {
  struct Visitor : ModuleVisitor {
    void parameter(const std::string& /*name*/, Parameter& parameter) override { ++parameter.version; }
  } visitor;
  module.visit("", visitor);
}

class SlowWeightCopiesInTraining : public ::testing::Test {
 protected:
  SlowWeightCopiesInTraining() {
    write_text(folder);
    config = micro_config(folder);
    config.train.accumulation = 2;
    config.fp8.histogram_every = 2;
  }

  struct Outcome {
    std::vector<double> losses;
    std::vector<CastCounts> casts;
    std::vector<std::string> files;  ///< of a checkpoint after every step
    std::vector<std::int64_t> weight_casts;
    friend bool operator==(const Outcome&, const Outcome&) = default;
  };

  /// The bytes of a checkpoint's files but progress.json.
  static std::vector<std::string> state_of(Trainer& trainer) {
    std::vector<std::string> all;
    const Snapshot snapshot(trainer, {});
    for (const CheckpointFile& file : snapshot.files()) {
      std::string bytes;
      for (const auto chunk : file.chunks)
        bytes.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
      all.push_back(std::move(bytes));
    }
    return all;
  }

  Outcome train(bool separately) const {
    Trainer trainer(make_backend(config.backend, config.threads), config);
    const BatchSource source = training_batches(config);
    Outcome outcome;
    for (int step = 0; step < 6; ++step) {
      const std::vector<HostBatch> batches = {source.at(2 * step), source.at(2 * step + 1)};
      const StepResult result = trainer.step(3e-3f, batches);
      outcome.losses.push_back(result.loss.nats);
      outcome.casts.push_back(result.casts);
      for (std::string& file : state_of(trainer)) outcome.files.push_back(std::move(file));
      if (separately) forget_copies(trainer.model());
      if (step == 2) outcome.losses.push_back(trainer.evaluate(validation_batches(config)).nats);
    }
    struct Casts : ModuleVisitor {
      void linear(const std::string& /*name*/, Linear& linear) override {
        counts.push_back(linear.weight_casts());
      }
      std::vector<std::int64_t> counts;
    } casts;
    trainer.model().visit("", casts);
    outcome.weight_casts = casts.counts;
    return outcome;
  }

  void expect_equal_outcomes(const std::string& what) const {
    Outcome ahead = train(false), separate = train(true);
    // One more where the evaluation cast for itself.
    for (std::size_t i = 0; i < ahead.weight_casts.size(); ++i) {
      EXPECT_GE(separate.weight_casts[i], ahead.weight_casts[i]) << what;
      EXPECT_LE(separate.weight_casts[i], ahead.weight_casts[i] + 1) << what;
    }
    ahead.weight_casts = separate.weight_casts = {};
    EXPECT_EQ(ahead == separate, true) << what;
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(SlowWeightCopiesInTraining, EqualCastsInTheForward) {
  for (const char* backend : {"reference", "cpu"}) {
    config.backend = backend;
    for (const Precision precision : {Precision::fp8, Precision::bf16, Precision::fp32}) {
      config.precision = precision;
      expect_equal_outcomes(std::string(backend) + ", " + std::string(name_of(precision)));
    }
  }
}

TEST_F(SlowWeightCopiesInTraining, EqualCastsInTheForwardUnderOtherRecipesAndMixtures) {
  config.backend = "cpu";
  config.model.tie_embeddings = false;
  // fprop in FP8 and dgrad in BF16: a module with both copies.
  config.fp8.overrides = {{.match = "blocks.0.*", .gemms = {false, true, false}}};
  expect_equal_outcomes("delayed beside BF16, a head of its own");
  config.fp8.amax_compute_algo = AmaxCompute::most_recent;
  config.fp8.lm_head = false;
  expect_equal_outcomes("most_recent, lm_head in BF16");
  config.fp8.overrides = {};
  config.fp8.recipe = "current";
  expect_equal_outcomes("current");
  config.fp8.recipe = "delayed";
  config.optimizer = {.moments = StateFormat::fp8, .masters = StateFormat::bf16};
  expect_equal_outcomes("masters in BF16");
}

/// One Linear, an optimizer, and the same with copies forgotten after every step.
class WeightCopiesOfALinear : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr std::int64_t kRows = 5, kIn = 24, kOut = 12;

  struct Side {
    Side(Backend& b, bool separate) : backend(b), separately(separate) {
      std::vector<float> weight(kOut * kIn);
      const Random random(3, 1);
      for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = random.normal(i);
      backend.copy_from_host(weight.data(), linear.weight().value);
      ++linear.weight().version;
    }
    void forward(const Tensor& x, bool fp8, Linear::Saved* saved) {
      const Autocast scope(context, fp8, recipe);
      linear.forward(context, linear.cast_input(context, x), saved);
    }
    void train(const Tensor& x, const Tensor& dy, bool fp8 = true) {
      Linear::Saved saved;
      forward(x, fp8, &saved);
      const BackwardPass pass(context);
      const Tensor dx = backend.allocate(DType::bf16, {kRows, kIn});
      linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy), dx);
    }
    void evaluate(const Tensor& x, bool fp8 = true) {
      const NoGradients evaluation(context);
      forward(x, fp8, nullptr);
    }
    void step() {
      optimizer.step(0.25f);
      if (separately) forget_copies(linear);
    }
    std::vector<float> state() {
      std::vector<float> all = download(backend, linear.weight().value);
      const ScalingSlot& slot = *linear.fp8().weight;
      for (const Tensor& tensor : {slot.scale, slot.amax_history}) {
        const std::vector<float> values = download(backend, tensor);
        all.insert(all.end(), values.begin(), values.end());
      }
      std::vector<std::int64_t> counters(kCastCounters);
      backend.copy_to_host(slot.counters, counters.data());
      all.insert(all.end(), counters.begin(), counters.end());
      return all;
    }

    Backend& backend;
    bool separately;
    Context context{backend};
    DelayedScaling recipe{.amax_history_len = 4};
    Linear linear{backend, {kIn, kOut}};
    AdamW optimizer{backend, linear, {.clip = 0}};
  };

  /// Both sides do the same and are equal after each of `rounds`.
  void expect_equal(const std::function<void(Side&, int round)>& work, int rounds = 5) {
    Side ahead(*backend, false), separate(*backend, true);
    for (int round = 0; round < rounds; ++round) {
      for (Side* side : {&ahead, &separate}) work(*side, round);
      const std::vector<float> found = ahead.state(), expected = separate.state();
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i)
        ASSERT_EQ(found[i], expected[i]) << "round " << round << ", entry " << i << " of " << found.size();
    }
  }

  Tensor random_matrix(std::int64_t cols, std::uint64_t stream, float size) {
    std::vector<float> values(kRows * cols);
    const Random random(2, stream);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = size * random.normal(i);
    return upload(*backend, values, {kRows, cols}, DType::bf16);
  }

  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());
  Tensor x = random_matrix(kIn, 1, 1.0f), dy = random_matrix(kOut, 2, 0.01f);
};

TEST_P(WeightCopiesOfALinear, TheForwardReadsWhatTheOptimizerWrote) {
  Side side(*backend, false);
  for (int step = 0; step < 3; ++step) {
    side.train(x, dy);
    side.step();
    const WeightCopies offered = side.linear.next_weight_copies();
    EXPECT_FALSE(offered.fp8.defined()) << "not offered again before a forward has read it";
  }
  // A master that changes behind everybody's back shows who reads it: not the forward.
  backend->fill(side.linear.weight().value, 0);
  const NoGradients evaluation(side.context);
  const Autocast scope(side.context, true, side.recipe);
  const Tensor y = side.linear.forward(side.context, side.linear.cast_input(side.context, x), nullptr);
  EXPECT_NE(download(*backend, y), std::vector<float>(kRows * kOut, 0));
}

TEST_P(WeightCopiesOfALinear, AreOfferedInTheFormsThatProductsRead) {
  Side side(*backend, false);
  side.train(x, dy);
  EXPECT_TRUE(side.linear.next_weight_copies().fp8.defined());
  EXPECT_FALSE(side.linear.next_weight_copies().bf16) << "no product reads BF16";
  side.train(x, dy, false);
  EXPECT_FALSE(side.linear.next_weight_copies().fp8.defined()) << "no product reads FP8";
  EXPECT_TRUE(side.linear.next_weight_copies().bf16);
  side.evaluate(x);
  EXPECT_FALSE(side.linear.next_weight_copies().fp8.defined()) << "made by evaluation";
}

TEST_P(WeightCopiesOfALinear, CachedMicroBatchesAndEvaluation) {
  expect_equal([&](Side& side, int round) {
    side.train(x, dy);
    if (round % 2) side.train(x, dy);
    side.step();
    if (round % 2) side.evaluate(x);
  });
}

TEST_P(WeightCopiesOfALinear, CalledTwiceInOneScope) {
  expect_equal([&](Side& side, int) {
    {
      const Autocast scope(side.context, true, side.recipe);
      Linear::Saved first, second;
      side.linear.forward(side.context, side.linear.cast_input(side.context, x), &first);
      side.linear.forward(side.context, side.linear.cast_input(side.context, x), &second);
    }
    side.step();
  });
}

TEST_P(WeightCopiesOfALinear, AModuleThatIsSkippedInAStep) {
  expect_equal([&](Side& side, int round) {
    // Weights decay, so the one that is not read shrinks below the one before.
    if (round != 1 && round != 2) side.train(x, dy);
    side.step();
  });
}

TEST_P(WeightCopiesOfALinear, ScopesOfTwoPrecisionsByTurns) {
  expect_equal(
      [&](Side& side, int round) {
        side.train(x, dy, round % 3 != 1);
        side.step();
        if (round == 4) side.evaluate(x, false);
      },
      8);
}

TEST_P(WeightCopiesOfALinear, ACalibratingScope) {
  expect_equal([&](Side& side, int round) {
    side.train(x, dy);
    side.step();
    if (round != 2) return;
    const Autocast scope(side.context, false, side.recipe, true);
    Linear::Saved saved;
    side.linear.forward(side.context, side.linear.cast_input(side.context, x), &saved);
  });
}

TEST_P(WeightCopiesOfALinear, AHistoryOfAnotherLength) {
  expect_equal([&](Side& side, int round) {
    side.recipe.amax_history_len = round < 3 ? 4 : 2;
    side.train(x, dy);
    side.step();
  });
}

TEST_P(WeightCopiesOfALinear, AStepThatIsNotTaken) {
  expect_equal([&](Side& side, int round) {
    side.train(x, dy);
    if (round == 1) {
      backend->fill(side.linear.weight().gradient.slice(0, 1), std::numeric_limits<double>::infinity());
      EXPECT_FALSE(std::isfinite(side.optimizer.step(1)));
      side.linear.weight().clear_gradient();
      return;
    }
    side.step();
  });
}

TEST_P(WeightCopiesOfALinear, WeightsWrittenBySomebodyElse) {
  expect_equal([&](Side& side, int round) {
    side.train(x, dy);
    side.step();
    if (round != 2) return;
    backend->fill(side.linear.weight().value, 0.25);
    ++side.linear.weight().version;
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, WeightCopiesOfALinear, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& backend) { return std::string(backend.param); });

}  // namespace
}  // namespace quaver
