#include "train/step_profile.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "train/synthetic_batch.h"
#include "train/trainer.h"
#include "train/training_support.h"

namespace quaver {
namespace {

RunConfig small_config() {
  const TemporaryFolder folder;
  RunConfig config = micro_config(folder);
  config.threads = 1;
  config.model.gate = GateKind::elementwise;
  return config;
}

const OperationTotals* find(const StepProfile& profile, const std::string& name) {
  const auto found = std::find_if(profile.operations.begin(), profile.operations.end(),
                                  [&](const OperationProfile& operation) { return operation.name == name; });
  return found == profile.operations.end() ? nullptr : &found->per_step;
}

// Every method passes its arguments on: the same weights after steps with all three recordings and without.
TEST(TimedBackend, SlowChangesNoBits) {
  for (Precision precision : {Precision::fp8, Precision::bf16, Precision::fp32}) {
    for (NormKind norm : {NormKind::rms, NormKind::layer}) {
      RunConfig config = small_config();
      config.precision = precision;
      config.model.norm = norm;
      config.model.qk_norm = QkNorm::pre_rope;
      config.model.mlp_bias = true;
      const auto plain = make_backend("cpu", 1);
      Trainer expected(plain, config),
          found(std::make_shared<TimedBackend>(make_backend("cpu", 1), 1), config);
      for (std::uint64_t step = 0; step < 3; ++step) {
        const HostBatch batch = synthetic_batch(config, step);
        const StepResult a = expected.step(1e-3f, std::span(&batch, 1)),
                         b = found.step(1e-3f, std::span(&batch, 1));
        EXPECT_EQ(a.loss.nats, b.loss.nats);
        EXPECT_EQ(a.gradient_norm, b.gradient_norm);
      }
    }
  }
}

TEST(StepProfile, CountsCallsBytesAndOperations) {
  const RunConfig config = small_config();
  const auto one = [] { return 1.0; };
  const StepProfile profile = profile_steps(config, 2, one, one);
  const std::int64_t tokens = config.train.batch * config.model.context;
  EXPECT_EQ(profile.micro_batch * profile.length, tokens);

  // RMSNorms: x in BF16, y in FP8, a gain, an rstd a token. The first one's input is the embedding; the others, two a block
  // and the last one less it, read two matrices and store their sum.
  const auto width = static_cast<double>(config.model.width), m = static_cast<double>(tokens);
  const auto expect_norms = [&](const char* name, std::int64_t calls, double bytes) {
    const OperationTotals* norms = find(profile, name);
    ASSERT_NE(norms, nullptr) << name;
    EXPECT_EQ(norms->calls, calls) << name;
    EXPECT_EQ(norms->bytes, static_cast<double>(calls) * (bytes * m * width + 4 * width + 4 * m)) << name;
    EXPECT_EQ(norms->flops, 0) << name;
    EXPECT_GT(norms->seconds, 0) << name;
  };
  expect_norms("rms_norm, e4m3", 1, 3);
  expect_norms("add and rms_norm, e4m3", 2 * config.model.layers, 7);
  EXPECT_EQ(find(profile, "add"), nullptr);

  // Products and attention together are what the model needs, and attention's scores once more in backward.
  double flops = 0;
  for (const char* name :
       {"gemm fprop e4m3", "gemm dgrad e5m2", "gemm wgrad e5m2", "attention", "attention backward"}) {
    ASSERT_NE(find(profile, name), nullptr) << name;
    flops += find(profile, name)->flops;
  }
  const double recomputed = find(profile, "attention")->flops / 2;
  EXPECT_DOUBLE_EQ(flops - recomputed, m * profile.flops_per_token);

  for (const OperationProfile& operation : profile.operations)
    EXPECT_GT(operation.per_step.calls, 0) << operation.name;
  double sum = 0;
  for (const OperationProfile& operation : profile.operations) sum += operation.per_step.seconds;
  EXPECT_LE(sum, 2 * profile.seconds);  // medians of parts and of the whole
  EXPECT_TRUE(
      std::is_sorted(profile.operations.begin(), profile.operations.end(),
                     [](const auto& a, const auto& b) { return a.per_step.seconds > b.per_step.seconds; }));
}

}  // namespace
}  // namespace quaver
