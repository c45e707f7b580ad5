/// From [fp8] to the precision of every GEMM.
#include "train/fp8_policy.h"

#include <gtest/gtest.h>

#include "quaver/linear.h"
#include "support/errors.h"
#include "train/fp8_state.h"
#include "train/run_folder.h"
#include "train/trainer.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

constexpr std::int64_t kLayers = 6;

Fp8Override override_of(const std::string& match, std::array<bool, 3> gemms = {true, true, true},
                        bool fp8 = false) {
  return {match, gemms, fp8 ? "delayed" : kBf16};
}

/// "110": fprop and dgrad in FP8, wgrad not.
std::string in_fp8(const GemmPolicies& policies) {
  std::string bits;
  for (const GemmPolicy& gemm : policies) bits += gemm.fp8 ? '1' : '0';
  return bits;
}

std::string policy(const std::string& name, const Fp8Config& fp8) {
  return in_fp8(fp8_policy_of(name, fp8, kLayers));
}

TEST(Fp8Policy, WithoutOverridesEverythingRunsInFp8) {
  for (const char* name : {"lm_head", "blocks.0.mlp.up_proj", "blocks.5.attention.qkv_proj"})
    EXPECT_EQ(policy(name, {}), "111") << name;
}

TEST(Fp8Policy, EndLayersAndTheHeadAreKeys) {
  Fp8Config fp8;
  fp8.bf16_end_layers = 2;
  fp8.lm_head = false;
  const std::vector<std::string> expected = {"000", "000", "111", "111", "000", "000"};
  for (std::size_t block = 0; block < kLayers; ++block)
    EXPECT_EQ(policy("blocks." + std::to_string(block) + ".mlp.up_proj", fp8), expected[block]) << block;
  EXPECT_EQ(policy("lm_head", fp8), "000");
  EXPECT_EQ(fp8_policy_of("lm_head", fp8, kLayers)[1].why_not, "fp8.lm_head = false");
  EXPECT_EQ(fp8_policy_of("blocks.5.mlp.up_proj", fp8, kLayers)[2].why_not, "fp8.bf16_end_layers = 2");
}

TEST(Fp8Policy, LaterOverridesWinAndTheFirstReasonStays) {
  Fp8Config fp8;
  fp8.lm_head = false;
  fp8.overrides = {override_of("blocks.{0,1}.*", {false, false, true}), override_of("*", {true, false, true}),
                   override_of("*.up_proj", {true, false, false}, true)};
  EXPECT_EQ(policy("blocks.0.mlp.up_proj", fp8), "110");
  EXPECT_EQ(policy("blocks.0.mlp.down_proj", fp8), "010");
  EXPECT_EQ(policy("lm_head", fp8), "000");
  EXPECT_EQ(fp8_policy_of("blocks.1.mlp.up_proj", fp8, kLayers)[2].why_not,
            "fp8.override of \"blocks.{0,1}.*\"");
  EXPECT_EQ(fp8_policy_of("lm_head", fp8, kLayers)[0].why_not, "fp8.lm_head = false");
  fp8.overrides.push_back({.match = "lm_head", .recipe = "delayed"});
  EXPECT_EQ(policy("lm_head", fp8), "111");
  EXPECT_EQ(fp8_policy_of("lm_head", fp8, kLayers)[0].why_not, "");
}

class AppliedPolicyTest : public testing::Test {
 protected:
  AppliedPolicyTest() {
    write_text(folder);
    config = micro_config(folder);
  }
  std::string refusal() {
    return error_message(ErrorKind::usage, [&] { Trainer(make_backend("cpu", 2), config); });
  }
  void step(Trainer& trainer) {
    const HostBatch batch = training_batches(config).at(0);
    trainer.step(1e-3f, std::span(&batch, 1));
  }

  TemporaryFolder folder;
  RunConfig config;
  TrainingObserver silent;
};

TEST_F(AppliedPolicyTest, APatternThatMatchesNothingIsRefused) {
  config.fp8.overrides = {override_of("blocks.*"), override_of("lm_heat")};
  EXPECT_TRUE(contains(refusal(), "match = \"lm_heat\" matches no module; did you mean \"lm_head\"?"))
      << refusal();
  config.fp8.overrides = {override_of("blocks.7.*")};
  EXPECT_TRUE(contains(refusal(), "blocks.0.attention.qkv_proj")) << refusal();
}

TEST_F(AppliedPolicyTest, EndLayersMustLeaveABlock) {
  config.model.layers = 3;
  config.fp8.bf16_end_layers = 1;
  EXPECT_NO_THROW(Trainer(make_backend("cpu", 2), config));
  config.model.layers = 2;
  EXPECT_TRUE(contains(refusal(), "fp8.bf16_end_layers: 1")) << refusal();
}

TEST_F(AppliedPolicyTest, GemmsRunAsTheirPolicySays) {
  config.model.packed_qkv = false;
  config.fp8.overrides = {override_of("blocks.1.*", {false, false, true}), override_of("*.k_proj"),
                          override_of("blocks.0.mlp.*", {true, true, false})};
  Trainer trainer(make_backend("cpu", 2), config);
  step(trainer);
  for (const auto& [name, linear] : linears_of(trainer.model())) {
    for (std::size_t i = 0; i < 3; ++i) {
      const GemmRecord& gemm = linear->fp8().gemms[i];
      const bool fp8 = fp8_policy_of(name, config.fp8, config.model.layers)[i].fp8;
      EXPECT_EQ(gemm.fp8_runs, fp8 ? 1 : 0) << name << " " << kGemmNames[i];
      EXPECT_EQ(gemm.other_runs, fp8 ? 0 : 1) << name << " " << kGemmNames[i];
      EXPECT_EQ(is_fp8(gemm.a) && is_fp8(gemm.b), fp8) << name << " " << kGemmNames[i];
    }
  }
  EXPECT_NO_THROW(require_strict_fp8(trainer.model())) << "BF16 by override is what was asked for";
}

TEST_F(AppliedPolicyTest, AMixedRunIsSavedAndLoadedExactly) {
  config.model.packed_qkv = false;
  config.fp8.overrides = {override_of("blocks.1.*", {false, false, true}), override_of("*.{q,k}_proj"),
                          override_of("lm_head", {true, false, false})};
  const TrainingResult result = run_training(config, silent);
  EXPECT_EQ(evaluate_saved(config).nats, result.validation->nats);
  for (const LinearState& state : load_fp8_state(config.run.dir))
    EXPECT_EQ(state.policy, fp8_policy_of(state.name, config.fp8, config.model.layers)) << state.name;
}

TEST_F(AppliedPolicyTest, StrictFp8NamesTheGemmThatDidNotRunInFp8) {
  Trainer trainer(make_backend("cpu", 2), config);
  const auto failure = [&] {
    return error_message(ErrorKind::failure, [&] { require_strict_fp8(trainer.model()); });
  };
  EXPECT_TRUE(contains(failure(), "blocks.0.attention.qkv_proj fprop ran 0 times")) << failure();
  step(trainer);
  EXPECT_NO_THROW(require_strict_fp8(trainer.model()));
  Linear& head = *linears_of(trainer.model()).back().linear;
  GemmPolicies policies;
  policies[2].fp8 = false;
  head.set_policy(policies);
  step(trainer);
  EXPECT_NO_THROW(require_strict_fp8(trainer.model()));
  head.set_policy({});
  EXPECT_TRUE(contains(failure(), "lm_head wgrad ran 1 times in FP8 and 1 times not (bf16 x bf16)"))
      << failure();
}

}  // namespace
}  // namespace quaver
