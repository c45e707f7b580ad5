#include "train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "support/errors.h"
#include "train/fp8_state.h"
#include "training_support.h"

namespace quaver {
namespace {

class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    write_text(folder);
    config = micro_config(folder);
  }

  std::unique_ptr<Trainer> make_trainer() const {
    return std::make_unique<Trainer>(make_backend(config.backend, config.threads), config);
  }

  /// Losses of `steps` optimizer steps, and the weights after them.
  std::pair<std::vector<double>, std::vector<NamedValues>> train(int steps) const {
    const auto trainer = make_trainer();
    const BatchSource source = training_batches(config);
    std::vector<double> losses;
    for (int step = 0; step < steps; ++step) {
      const HostBatch batch = source.at(step);
      losses.push_back(trainer->step(1e-3f, std::span(&batch, 1)).loss.nats);
    }
    return {losses, parameters_of(trainer->backend(), trainer->model())};
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(TrainerTest, SlowTheLossFallsInEveryPrecision) {
  for (const Precision precision : {Precision::fp8, Precision::bf16, Precision::fp32}) {
    config.precision = precision;
    const auto losses = train(12).first;
    EXPECT_LT(losses.back(), 0.95 * losses.front()) << name_of(precision);
  }
}

TEST_F(TrainerTest, TheReferenceBackendTrains) {
  config.backend = "reference";
  const auto losses = train(4).first;
  EXPECT_LT(losses.back(), losses.front());
}

TEST_F(TrainerTest, SlowThreadsAndRepetitionDoNotChangeABit) {
  for (const Precision precision : {Precision::fp8, Precision::bf16}) {
    config.precision = precision;
    config.threads = 1;
    const auto expected = train(4);
    EXPECT_EQ(train(4), expected) << "a second run";
    for (const int threads : {2, 3, 4}) {
      config.threads = threads;
      EXPECT_EQ(train(4), expected) << threads << " threads";
    }
  }
}

TEST_F(TrainerTest, WhatIsDoneDuringAStepSeesGradientsFirstAndThenAnUpdateThatDoesNotCountYet) {
  const auto trainer = make_trainer();
  const HostBatch batch = training_batches(config).at(0);
  std::vector<std::string> seen;
  trainer->step(1e-3f, std::span(&batch, 1),
                {.gradients_ready = [&](LanguageModel&) { seen.push_back("gradients"); },
                 .handed_out =
                     [&] {
                       EXPECT_EQ(trainer->steps(), 0);
                       seen.push_back("handed out");
                     }});
  EXPECT_EQ(seen, (std::vector<std::string>{"gradients", "handed out"}));
  EXPECT_EQ(trainer->steps(), 1);
}

TEST_F(TrainerTest, ADifferentSeedGivesDifferentWeights) {
  const auto first = train(1).second;
  config.train.seed = 2;
  EXPECT_NE(train(1).second, first);
}

TEST_F(TrainerTest, AccumulationCastsEachWeightOncePerOptimizerStep) {
  struct Visitor : ModuleVisitor {
    void linear(const std::string& /*name*/, Linear& linear) override {
      casts.push_back(linear.weight_casts());
    }
    std::vector<std::int64_t> casts;
  };
  const auto trainer = make_trainer();
  const BatchSource source = training_batches(config);
  const std::vector<HostBatch> batches = {source.at(0), source.at(1), source.at(2)};
  for (int step = 1; step <= 2; ++step) {
    trainer->step(1e-3f, batches);
    Visitor visitor;
    trainer->model().visit("", visitor);
    EXPECT_EQ(visitor.casts, std::vector<std::int64_t>(visitor.casts.size(), step));
  }
}

HostBatch joined(HostBatch a, const HostBatch& b) {
  const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  append(a.tokens, b.tokens);
  append(a.targets, b.targets);
  append(a.positions, b.positions);
  append(a.first_key, b.first_key);
  a.batch += b.batch;
  a.target_count += b.target_count;
  a.target_bytes += b.target_bytes;
  return a;
}

TEST_F(TrainerTest, AccumulatedMicroBatchesEqualOneLargeBatch) {
  config.precision = Precision::fp32;
  const BatchSource source = training_batches(config);
  const auto gradients_of = [&](const std::vector<HostBatch>& batches) {
    std::vector<NamedValues> gradients;
    const auto trainer = make_trainer();
    const auto result = trainer->step(1e-3f, batches, {.gradients_ready = [&](LanguageModel& model) {
                                        gradients = parameters_of(trainer->backend(), model);
                                      }});
    return std::pair(result, gradients);
  };
  const auto [split, split_gradients] = gradients_of({source.at(0), source.at(1)});
  const auto [whole, whole_gradients] = gradients_of({joined(source.at(0), source.at(1))});
  EXPECT_EQ(split.loss.tokens, whole.loss.tokens);
  EXPECT_DOUBLE_EQ(split.loss.nats, whole.loss.nats);  // the same per-token losses, summed in another order
  for (std::size_t i = 0; i < whole_gradients.size(); ++i) {
    const auto& a = split_gradients[i].gradient;
    const auto& b = whole_gradients[i].gradient;
    const auto magnitude = [](float x, float y) { return std::abs(x) < std::abs(y); };
    const float largest = std::abs(*std::max_element(b.begin(), b.end(), magnitude));
    for (std::size_t j = 0; j < b.size(); ++j) {
      // The same 256 products in FP32, summed with another grouping: 256 * 2^-24 of the sum of magnitudes,
      // which is a few times the largest gradient of the tensor at most.
      EXPECT_NEAR(a[j], b[j], 5e-5 * largest) << whole_gradients[i].name << " " << j;
    }
  }
}

TEST_F(TrainerTest, ANanInAGradientLeavesTheWeightsUntouched) {
  const auto trainer = make_trainer();
  const HostBatch batch = training_batches(config).at(0);
  trainer->step(1e-3f, std::span(&batch, 1));
  const auto values = [&] {
    std::vector<std::vector<float>> all;
    for (const auto& parameter : parameters_of(trainer->backend(), trainer->model()))
      all.push_back(parameter.value);
    return all;
  };
  const auto before = values();
  const std::string message = error_message(ErrorKind::non_finite, [&] {
    trainer->step(1e-3f, std::span(&batch, 1), {.gradients_ready = inject_nan});
  });
  EXPECT_TRUE(contains(message, "step 2: loss ")) << message;
  EXPECT_TRUE(contains(message, "gradient norm nan")) << message;
  EXPECT_TRUE(contains(message, "Hint")) << message;
  EXPECT_EQ(values(), before);
  EXPECT_EQ(trainer->steps(), 1);
}

/// The bytes of all scales and histories.
std::vector<std::vector<std::byte>> slots_of(Trainer& trainer) {
  std::vector<std::vector<std::byte>> slots;
  for (const auto& array : to_safetensors(capture_fp8_state(trainer.backend(), trainer.model())).arrays) {
    slots.push_back(array.bytes);
  }
  return slots;
}

TEST_F(TrainerTest, EvaluationLeavesNoTrace) {
  const BatchSource source = training_batches(config);
  const ValidationBatches validation = validation_batches(config);
  const auto run = [&](bool with_evaluation) {
    const auto trainer = make_trainer();
    for (int step = 0; step < 3; ++step) {
      const HostBatch batch = source.at(step);
      trainer->step(1e-3f, std::span(&batch, 1));
      if (!with_evaluation) continue;
      EXPECT_EQ(trainer->evaluate(validation).nats, trainer->evaluate(validation).nats);
    }
    return std::tuple(slots_of(*trainer), count_casts(trainer->backend(), trainer->model()),
                      parameters_of(trainer->backend(), trainer->model()));
  };
  EXPECT_EQ(run(true), run(false));
}

TEST_F(TrainerTest, CountsTheCastsOfEachStep) {
  const auto trainer = make_trainer();
  const HostBatch batch = training_batches(config).at(0);
  const StepResult first = trainer->step(1e-3f, std::span(&batch, 1));
  const StepResult second = trainer->step(1e-3f, std::span(&batch, 1));
  // Per token and Linear: input and output gradient; per Linear: the weight.
  const std::int64_t tokens = 128, qkv = 96, ffn = 64, width = 32, vocab = 257;
  const std::int64_t features =
      2 * ((width + qkv) + (width + width) + width + 2 * ffn + (ffn + width)) + width + vocab;
  const std::int64_t weights = 2 * (width * qkv + width * width + 3 * width * ffn) + width * vocab;
  EXPECT_EQ(first.casts.cast, tokens * features + weights);
  EXPECT_EQ(second.casts.cast, first.casts.cast);
  EXPECT_EQ(second.casts.nan, 0);
  const Fp8Coverage fp8 = fp8_coverage(trainer->model());
  EXPECT_EQ(fp8.linears, 11);
  EXPECT_EQ(fp8.in_fp8, 11);
  EXPECT_EQ(fp8.full, 11);
}

TEST_F(TrainerTest, LmHeadStaysInBf16WhenAsked) {
  config.fp8.lm_head = false;
  const auto trainer = make_trainer();
  const HostBatch batch = training_batches(config).at(0);
  trainer->step(1e-3f, std::span(&batch, 1));
  EXPECT_EQ(fp8_coverage(trainer->model()).full, 10);
}

}  // namespace
}  // namespace quaver
