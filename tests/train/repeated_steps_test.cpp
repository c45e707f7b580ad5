/// Training with micro-batches that a device repeats as one: the same bits and the same bookkeeping as operation by
/// operation, and it does happen.
#include <gtest/gtest.h>

#include "support/emulated_backend.h"
#include "support/test_backends.h"
#include "train/fp8_state.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

class RepeatedSteps : public ::testing::Test {
 protected:
  RepeatedSteps() {
    write_text(folder);
    config = micro_config(folder);
    config.model.layers = 1;
    config.model.context = 16;
    config.train.batch = 1;
    config.train.accumulation = 2;
  }

  struct Outcome {
    std::vector<double> losses;
    std::vector<float> norms;
    std::vector<CastCounts> casts;
    std::vector<NamedValues> parameters;
    std::vector<std::int64_t> runs;  ///< of every product of every Linear
    friend bool operator==(const Outcome&, const Outcome&) = default;
  };

  /// Fills memory that the next calls' frames will lie in: padding that is compared would show.
  [[gnu::noinline]] static void scribble(int step) {
    volatile unsigned char frame[1 << 14];
    for (volatile unsigned char& byte : frame) byte = static_cast<unsigned char>(37 * step + 11);
  }

  Outcome train(const std::shared_ptr<Backend>& backend, int steps) const {
    Trainer trainer(backend, config);
    const BatchSource source = training_batches(config);
    Outcome outcome;
    for (int step = 0; step < steps; ++step) {
      const std::vector<HostBatch> batches = {source.at(2 * step), source.at(2 * step + 1)};
      scribble(step);
      const StepResult result = trainer.step(1e-3f / static_cast<float>(step + 1), batches);
      outcome.losses.push_back(result.loss.nats);
      outcome.norms.push_back(result.gradient_norm);
      outcome.casts.push_back(result.casts);
      if (step == 3) trainer.evaluate(validation_batches(config));  // casts weights outside training
    }
    outcome.parameters = parameters_of(*backend, trainer.model());
    for (const LinearState& state : capture_fp8_state(*backend, trainer.model()))
      for (const GemmRecord& gemm : state.gemms)
        outcome.runs.insert(outcome.runs.end(), {gemm.fp8_runs, gemm.other_runs});
    return outcome;
  }

  TemporaryFolder folder;
  RunConfig config;
};

/// Minutes under the sanitizers, where fibers are slow.
class SlowRepeatedSteps : public RepeatedSteps {};

TEST_F(SlowRepeatedSteps, ReplayedMicroBatchesGiveTheSameBits) {
  using quaver::testing::make_emulated_backend;
  constexpr int kSteps = 8;
  for (const auto& [precision, recipe] :
       {std::pair(Precision::fp8, "delayed"), std::pair(Precision::fp8, "block"),
        std::pair(Precision::bf16, "delayed")}) {
    config.precision = precision;
    config.fp8.recipe = recipe;
    const auto repeats = make_emulated_backend(), refuses = make_emulated_backend(false, false);
    const Outcome expected = train(refuses, kSteps);
    EXPECT_EQ(train(repeats, kSteps), expected) << name_of(precision) << " " << recipe;
    const RepeatUse refused = refuses->repeat_use(), use = repeats->repeat_use();
    EXPECT_EQ(refused.replayed, 0);
    EXPECT_EQ(use.replayed + use.direct, refused.direct) << "lists end at the same places";
    // From the third step on all but what follows the evaluation.
    EXPECT_GE(use.replayed, refused.direct / 2) << "recorded " << use.recorded << ", direct " << use.direct;
  }
}

TEST_F(RepeatedSteps, BackendsWithoutRecordingsRunDirectly) {
  for (const char* name : {"cpu", "reference"}) {
    const auto backend = make_backend(name);
    const Outcome outcome = train(backend, 2);
    EXPECT_LT(outcome.losses.back(), outcome.losses.front()) << name;
    EXPECT_EQ(backend->repeat_use().replayed, 0);
  }
}

#ifdef QUAVER_CUDA
TEST_F(RepeatedSteps, CudaReplays) {
  if (!testing::why_no_cuda().empty()) GTEST_SKIP() << testing::why_no_cuda();
  const auto backend = testing::make_test_backend("cuda");
  const RepeatUse before = backend->repeat_use();
  constexpr int kSteps = 12;
  const Outcome outcome = train(backend, kSteps);
  const RepeatUse use = backend->repeat_use();
  EXPECT_GE(use.replayed - before.replayed, use.direct - before.direct) << "direct: " << use.why_direct;
  EXPECT_LT(outcome.losses.back(), outcome.losses.front());
}
#endif

}  // namespace
}  // namespace quaver
