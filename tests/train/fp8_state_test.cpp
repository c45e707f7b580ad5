#include "train/fp8_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/errors.h"
#include "train/fp8_health.h"
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
    config.fp8.histogram_every = 3;
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

TEST_F(Fp8StateTest, ExponentsAreThoseOfEverythingCastInTheStepThatCounts) {
  for (const LinearState& state : states) {
    for (const auto& [name, member] : kSlots) {
      const auto& slot = state.*member;
      if (!slot) continue;
      ASSERT_TRUE(slot->exponents) << state.name << name;
      const ExponentHistogram& histogram = *slot->exponents;
      // Three steps that cast the same number of elements, of which the last counted.
      EXPECT_EQ(3 * (histogram.numbers() + histogram.zeros), slot->counters.at(kCastElements))
          << state.name << name;
      EXPECT_EQ(histogram.non_finite, 0);
      // The newest finished amax lies in the highest binade.
      EXPECT_EQ(histogram.top, std::ilogb(slot->amax_history.back())) << state.name << name;
    }
  }
}

TEST_F(Fp8StateTest, CountingExponentsChangesNoBit) {
  const auto train = [&](std::int64_t every, Recompute recompute) {
    config.fp8.histogram_every = every;
    config.model.recompute = recompute;
    Trainer other(make_backend("cpu", 2), config);
    const BatchSource source = training_batches(config);
    for (int step = 0; step < 2; ++step) {
      const std::vector<HostBatch> batches{source.at(2 * step), source.at(2 * step + 1)};
      other.step(1e-3f, batches);
    }
    return std::pair(parameters_of(other.backend(), other.model()),
                     count_casts(other.backend(), other.model()));
  };
  const auto expected = train(0, Recompute::none);
  for (const Recompute recompute : {Recompute::none, Recompute::attention, Recompute::block})
    EXPECT_EQ(train(1, recompute), expected);
}

TEST_F(Fp8StateTest, FilesOfBeforeCountersWereStoredAreRead) {
  Safetensors file = to_safetensors(states);
  auto linears = nlohmann::json::parse(file.metadata["linears"]);
  for (auto& linear : linears) linear.erase("casts");
  file.metadata["linears"] = linears.dump();
  const auto old = fp8_state_from(file, "state");
  EXPECT_TRUE(old.front().weight->counters.empty());
  LanguageModel other(make_backend("reference"), config.model, 9);
  restore_fp8_state(other.backend(), other, old);
  EXPECT_EQ(count_casts(other.backend(), other), CastCounts());
  EXPECT_TRUE(cast_tensors(old).empty());
}

TEST_F(Fp8StateTest, HealthSeesEveryTensorThatIsCast) {
  const std::vector<CastTensor> tensors = cast_tensors(states);
  EXPECT_EQ(tensors.size(), 3 * states.size() - 2 * 4) << "shared inputs once";
  EXPECT_EQ(tensors.front().name, "blocks.0.attention.q_proj.input");
  std::size_t gradients = 0;
  for (const CastTensor& tensor : tensors) gradients += tensor.format == DType::e5m2;
  EXPECT_EQ(gradients, states.size());
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
