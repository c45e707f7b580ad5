#include "train/fp8_state.h"

#include <gtest/gtest.h>

#include "support/errors.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

class Fp8StateTest : public testing::Test {
 protected:
  Fp8StateTest() {
    write_text(folder);
    config = micro_config(folder);
    config.model.packed_qkv = false;  // q, k, v and gate share one input slot
    trainer = std::make_unique<Trainer>(make_backend("cpu", 2), config);
    const BatchSource source = training_batches(config);
    for (int step = 0; step < 3; ++step) {
      const HostBatch batch = source.at(step);
      trainer->step(1e-3f, std::span(&batch, 1));
    }
    states = capture_fp8_state(trainer->backend(), trainer->model());
  }

  TemporaryFolder folder;
  RunConfig config;
  std::unique_ptr<Trainer> trainer;
  std::vector<LinearState> states;
};

void expect_equal(const std::vector<LinearState>& a, const std::vector<LinearState>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_EQ(a[i].owns_input, b[i].owns_input);
    ASSERT_TRUE(a[i].recipe && b[i].recipe) << a[i].name;
    EXPECT_EQ(describe(*a[i].recipe), describe(*b[i].recipe));
    EXPECT_EQ(a[i].input, b[i].input) << a[i].name;
    EXPECT_EQ(a[i].weight, b[i].weight) << a[i].name;
    EXPECT_EQ(a[i].grad_output, b[i].grad_output) << a[i].name;
    for (std::size_t gemm = 0; gemm < 3; ++gemm) {
      EXPECT_EQ(a[i].gemms[gemm].a, b[i].gemms[gemm].a);
      EXPECT_EQ(a[i].gemms[gemm].b, b[i].gemms[gemm].b);
      EXPECT_EQ(a[i].gemms[gemm].out, b[i].gemms[gemm].out);
      EXPECT_EQ(a[i].gemms[gemm].fp8_runs, b[i].gemms[gemm].fp8_runs);
      EXPECT_EQ(a[i].gemms[gemm].other_runs, b[i].gemms[gemm].other_runs);
    }
  }
}

TEST_F(Fp8StateTest, HoldsWhatTrainingLeft) {
  std::size_t shared = 0;
  for (const LinearState& state : states) {
    shared += !state.owns_input;
    EXPECT_EQ(state.input.has_value(), state.owns_input) << state.name;
    ASSERT_TRUE(state.weight && state.grad_output) << state.name;
    EXPECT_EQ(state.weight->amax_history.size(), 4u);
    EXPECT_NE(state.weight->scale, 1) << state.name;
    EXPECT_EQ(state.gemms[0].fp8_runs, 3);
  }
  EXPECT_EQ(shared, 2u * 4);  // k, v and gate read q's input; up_proj reads gate_proj's
}

TEST_F(Fp8StateTest, SurvivesSafetensors) {
  expect_equal(fp8_state_from(to_safetensors(states), "state"), states);
}

TEST_F(Fp8StateTest, SurvivesAnotherModel) {
  LanguageModel other(make_backend("reference"), config.model, 9);
  restore_fp8_state(other.backend(), other, states);
  expect_equal(capture_fp8_state(other.backend(), other), states);
}

TEST_F(Fp8StateTest, AnotherArchitectureIsRefused) {
  config.model.packed_qkv = true;
  LanguageModel packed(make_backend("reference"), config.model, 9);
  const std::string message =
      error_message(ErrorKind::data, [&] { restore_fp8_state(packed.backend(), packed, states); });
  EXPECT_TRUE(contains(message, "expected the state of blocks.0.attention.qkv_proj")) << message;

  config.model.packed_qkv = false;
  config.model.layers = 1;
  LanguageModel shallow(make_backend("reference"), config.model, 9);
  error_message(ErrorKind::data, [&] { restore_fp8_state(shallow.backend(), shallow, states); });
}

TEST_F(Fp8StateTest, DamageIsRefused) {
  const Safetensors good = to_safetensors(states);
  const auto refuse = [](const Safetensors& file) {
    const std::string message = error_message(ErrorKind::data, [&] { fp8_state_from(file, "state"); });
    EXPECT_TRUE(message.starts_with("state: ")) << message;
  };
  Safetensors file = good;
  file.metadata.clear();
  refuse(file);
  file = good;
  file.metadata["linears"] = "[{]";
  refuse(file);
  file.metadata["linears"] = R"([{"name": "a", "owns_input": 3}])";
  refuse(file);
  file = good;
  file.arrays.pop_back();
  refuse(file);
  file = good;
  file.arrays.back().dtype = DType::i32;
  refuse(file);
}

}  // namespace
}  // namespace quaver
