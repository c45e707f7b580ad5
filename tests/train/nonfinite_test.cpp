/// A NaN or an infinity, wherever it arises, never reaches a weight, a moment or a scale.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "ops/timed_backend.h"
#include "support/errors.h"
#include "support/test_backends.h"
#include "train/fp8_state.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

/// A tensor of a step, at each of the calls that compute (or read) it.
enum class Place {
  embedding,
  residual,    ///< a norm's input: so that of qkv_proj, of gate_proj and up_proj, of lm_head
  projection,  ///< every Linear's output
  heads,       ///< q and k of attention
  attention,   ///< so the input of out_proj
  hidden,      ///< so the input of down_proj
  losses,
  input_gradient,
  weight_gradient,
  hidden_gradient,
  head_gradient,
  attention_gradient,
  norm_gradient,
  gain_gradient,
  embedding_gradient,
};
constexpr std::array<std::pair<Place, const char*>, 15> kPlaces = {{
    {Place::embedding, "embedding"},
    {Place::residual, "residual"},
    {Place::projection, "projection"},
    {Place::heads, "heads"},
    {Place::attention, "attention"},
    {Place::hidden, "hidden"},
    {Place::losses, "losses"},
    {Place::input_gradient, "input_gradient"},
    {Place::weight_gradient, "weight_gradient"},
    {Place::hidden_gradient, "hidden_gradient"},
    {Place::head_gradient, "head_gradient"},
    {Place::attention_gradient, "attention_gradient"},
    {Place::norm_gradient, "norm_gradient"},
    {Place::gain_gradient, "gain_gradient"},
    {Place::embedding_gradient, "embedding_gradient"},
}};
constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::array kValues = {kNan, kInfinity, -kInfinity};

/// Puts a value into one tensor, once, when it is computed for the chosen time.
class FaultyBackend : public TimedBackend {
 public:
  explicit FaultyBackend(std::shared_ptr<Backend> inner) : TimedBackend(std::move(inner), 1) {}

  void arm(Place place, float value, int calls_before) {
    place_ = place, value_ = value, calls_before_ = calls_before, armed_ = true;
  }
  /// The next update of scales finds this as a slot's amax. The slot is the first of that update.
  void arm_amax(float value) { amax_ = value; }
  bool armed() const { return armed_ || amax_; }
  /// How often each place was met since the last call.
  std::map<Place, int> take_calls() { return std::exchange(calls_, {}); }
  /// The slot that arm_amax met.
  const ScalingSlot& struck_slot() const { return struck_slot_; }

  void embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                 const Tensor& position_table, const Tensor& out) override {
    TimedBackend::embedding(tokens, table, positions, position_table, out);
    strike(Place::embedding, out);
  }
  void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                          const Tensor& dtable, const Tensor& dposition_table) override {
    TimedBackend::embedding_backward(dout, tokens, positions, dtable, dposition_table);
    strike(Place::embedding_gradient, dtable);
  }
  void rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                const Tensor& rstd) override {
    strike(Place::residual, x.x);
    TimedBackend::rms_norm(x, gain, epsilon, y, rstd);
  }
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                         bool accumulate_dx, const Output& dx, const Tensor& dgain) override {
    TimedBackend::rms_norm_backward(dy, x, gain, rstd, accumulate_dx, dx, dgain);
    strike(Place::norm_gradient, dx.values);
    strike(Place::gain_gradient, dgain);
  }
  void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias, bool accumulate,
            const Tensor& out) override {
    TimedBackend::gemm(kind, a, b, bias, accumulate, out);
    strike(kind == Gemm::fprop   ? Place::projection
           : kind == Gemm::dgrad ? Place::input_gradient
                                 : Place::weight_gradient,
           out);
  }
  void transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                       const Tensor& out) override {
    TimedBackend::transform_heads(transform, x, positions, out);
    strike(Place::heads, out);
  }
  void transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                const Tensor& positions, const Output& dx, const Tensor& dgain) override {
    strike(Place::head_gradient, dout);  // dx may be FP8 alone
    TimedBackend::transform_heads_backward(transform, dout, x, positions, dx, dgain);
  }
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                 const Tensor& first_key, const Tensor& out, const Tensor& lse) override {
    TimedBackend::attention(shape, q, k, v, first_key, out, lse);
    strike(Place::attention, out);
  }
  void attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& first_key, const Tensor& out, const Tensor& lse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) override {
    TimedBackend::attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
    strike(Place::attention_gradient, dv);
  }
  void activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) override {
    strike(Place::hidden, up);
    TimedBackend::activation(kind, gate, up, h);
  }
  void activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                           const Output& dgate, const Output& dup, const Output& h) override {
    strike(Place::hidden_gradient, dh);
    TimedBackend::activation_backward(kind, dh, gate, up, dgate, dup, h);
  }
  void cross_entropy(const Tensor& logits, const Tensor& targets, float scale, const Tensor& losses,
                     const Output& dlogits) override {
    TimedBackend::cross_entropy(logits, targets, scale, losses, dlogits);
    strike(Place::losses, losses);
  }
  void update_scales(std::span<const ScaleUpdate> updates) override {
    if (amax_) {
      struck_slot_ = updates.front().slot;
      fill(struck_slot_.amax_history.slice(0, 1), *std::exchange(amax_, std::nullopt));
    }
    TimedBackend::update_scales(updates);
  }

 private:
  void strike(Place place, const Tensor& tensor) {
    ++calls_[place];
    if (!armed_ || place != place_ || calls_before_-- > 0) return;
    armed_ = false;
    const Tensor row = tensor.slice(0, 1);
    fill(row.shape().size() == 2 ? row.columns(0, 1) : row, value_);
  }

  Place place_{};
  float value_ = 0;
  int calls_before_ = 0;
  bool armed_ = false;
  std::optional<float> amax_;
  ScalingSlot struck_slot_;
  std::map<Place, int> calls_;
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

class NonFiniteTest : public ::testing::Test {
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
  std::unique_ptr<Trainer> make_trainer(const std::string& name = "reference") {
    backend = std::make_shared<FaultyBackend>(testing::make_test_backend(name));
    return std::make_unique<Trainer>(backend, config);
  }
  /// The two micro-batches of a step.
  StepResult take(Trainer& trainer, std::int64_t step) {
    if (!source_) source_ = training_batches(config);
    const std::vector<HostBatch> batches{source_->at(2 * step), source_->at(2 * step + 1)};
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

 private:
  std::optional<BatchSource> source_;
};

/// Where and when a number breaks. `step` is of three.
struct Fault {
  Place place;
  const char* name;
  float value;
  int calls_before, step;
  /// A logit of -infinity is a probability of 0: no number of the loss or of a gradient is other than finite.
  bool swallowed = false;
};

/// On every backend.
class NonFinitePlaces : public NonFiniteTest, public ::testing::WithParamInterface<std::string> {
 protected:
  static constexpr std::int64_t kSteps = 3;
  /// The state after these steps of a new trainer.
  State state_after(const std::vector<std::int64_t>& steps) {
    const auto trainer = make_trainer(GetParam());
    for (const std::int64_t step : steps) take(*trainer, step);
    return state_of(*trainer);
  }
  /// How often each place is met in a step.
  std::map<Place, int> calls_of_a_step() {
    const auto trainer = make_trainer(GetParam());
    take(*trainer, 0);
    return backend->take_calls();
  }
  /// A step with a fault is refused and leaves no trace: neither in the state nor in what the later steps make of it.
  void check(const std::vector<Fault>& faults) {
    std::map<int, State> expected;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<std::int64_t> others;
      for (int other = 0; other < kSteps; ++other)
        if (other != step) others.push_back(other);
      expected[step] = state_after(others);
    }
    for (const Fault& fault : faults) {
      const std::string what = fmt::format("{} at {}, after {} calls, in step {}", fault.value, fault.name,
                                           fault.calls_before, fault.step);
      const auto trainer = make_trainer(GetParam());
      for (int step = 0; step < kSteps; ++step) {
        if (step != fault.step) {
          EXPECT_TRUE(take(*trainer, step).skipped.empty()) << what;
          continue;
        }
        const State before = state_of(*trainer);
        backend->arm(fault.place, fault.value, fault.calls_before);
        const StepResult result = take(*trainer, step);
        EXPECT_FALSE(backend->armed()) << what;
        EXPECT_EQ(result.skipped.empty(), fault.swallowed) << what;
        if (fault.swallowed) break;
        const State after = state_of(*trainer);
        EXPECT_TRUE(after.weights == before.weights && after.moments == before.moments) << what;
        // Before the first step there are no slots; a refused one leaves new ones.
        if (step > 0) {
          EXPECT_TRUE(after == before) << what;
        }
        EXPECT_EQ(trainer->steps(), step) << what;
      }
      if (fault.swallowed) {
        expect_finite(state_of(*trainer));
      } else {
        EXPECT_TRUE(state_of(*trainer) == expected[fault.step]) << what;
      }
    }
  }
  /// `call` of so many in a step: half of them in each micro-batch, and lm_head's is the last projection of each.
  static Fault fault(const std::pair<Place, const char*>& place, float value, int call, int calls, int step) {
    const bool logit = place.first == Place::projection && (call + 1) % (calls / 2) == 0;
    return {place.first, place.second, value, call, step, logit && value == -kInfinity};
  }
  /// Every place with every value, in the first, a middle and the last step, at the last call of a micro-batch.
  std::vector<Fault> faults_of_all_steps() {
    std::vector<Fault> faults;
    const auto calls = calls_of_a_step();
    for (const auto& place : kPlaces) {
      const int all = calls.at(place.first);
      for (const float value : kValues) {
        for (int step = 0; step < kSteps; ++step)
          faults.push_back(fault(place, value, all / 2 - 1, all, step));
      }
    }
    return faults;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, NonFinitePlaces, ::testing::Values("reference", "cpu"),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(SlowBackends, NonFinitePlaces, ::testing::Values("emulation"),
                         [](const auto& test) { return test.param; });

TEST_P(NonFinitePlaces, SlowInTheFirstAMiddleAndTheLastStepAreAsIfTheStepNeverWas) {
  std::vector<Fault> faults = faults_of_all_steps();
  if (GetParam() == "emulation") {
    // Its kernels are slow: places, values and steps in turn.
    std::vector<Fault> some;
    for (std::size_t i = 0; i < faults.size(); i += 19) some.push_back(faults[i]);
    faults = some;
  }
  check(faults);
}

TEST_P(NonFinitePlaces, SlowOfEveryModuleAndMicroBatchAreRefused) {
  if (GetParam() == "emulation") GTEST_SKIP() << "launches one by one: the host's backends take every call";
  std::vector<Fault> faults;
  const auto calls = calls_of_a_step();
  for (const auto& place : kPlaces) {
    // The values in turn: the test above has all of them.
    const int all = calls.at(place.first);
    for (int call = 0; call < all; ++call)
      faults.push_back(fault(place, kValues[static_cast<std::size_t>(call) % kValues.size()], call, all, 1));
  }
  check(faults);
}

TEST_P(NonFinitePlaces, SlowUnderASmoothedDownProjToo) {
  config.fp8.smooth_swiglu = true;
  std::vector<Fault> faults = faults_of_all_steps();
  if (GetParam() == "emulation") faults.resize(2);
  check(faults);
}

TEST_P(NonFinitePlaces, UnderRecipesWithoutStateToo) {
  config.fp8.recipe = "current";
  std::vector<Fault> faults;
  for (const auto& [place, name] : kPlaces) faults.push_back({place, name, -kInfinity, 0, 1});
  if (GetParam() == "emulation") faults.resize(2);
  check(faults);
}

TEST_P(NonFinitePlaces, AnAmaxAloneSetsNoScale) {
  // As a broken reduction would: the numbers that were cast are finite, so the step is taken.
  for (const float value : kValues) {
    for (int step = 0; step < kSteps; ++step) {
      if (GetParam() == "emulation" && step != 1) continue;
      const auto trainer = make_trainer(GetParam());
      for (int earlier = 0; earlier < step; ++earlier) take(*trainer, earlier);
      const auto first_slot_scale = [&] { return download(*backend, backend->struck_slot().scale).front(); };
      backend->arm_amax(value);
      take(*trainer, step);
      EXPECT_FALSE(backend->armed());
      EXPECT_TRUE(std::isfinite(first_slot_scale()) && first_slot_scale() > 0) << value << " " << step;
      for (int later = step + 1; later <= kSteps; ++later)
        EXPECT_TRUE(take(*trainer, later).skipped.empty()) << value << " " << step;
      expect_finite(state_of(*trainer));
      for (const LinearState& linear : capture_fp8_state(*backend, trainer->model())) {
        for (const auto& [name, member] : kSlots) {
          const auto& slot = linear.*member;
          if (slot) {
            EXPECT_TRUE(std::isfinite(slot->scale) && slot->scale > 0) << linear.name << "." << name;
          }
        }
      }
    }
  }
}

TEST_P(NonFinitePlaces, StopThrowsAndLeavesTheSameState) {
  if (GetParam() == "emulation") GTEST_SKIP() << "what decides is the trainer's, not the backend's";
  config.train.nonfinite = NonFinite::stop;
  for (const auto& [place, name] : kPlaces) {
    const auto trainer = make_trainer(GetParam());
    take(*trainer, 0);
    const State before = state_of(*trainer);
    backend->arm(place, kNan, 0);
    const std::string message = error_message(ErrorKind::non_finite, [&] { take(*trainer, 1); });
    EXPECT_TRUE(contains(message, "step 2: loss ")) << name << message;
    EXPECT_TRUE(state_of(*trainer) == before) << name;
  }
}

TEST_P(NonFinitePlaces, InOtherPrecisionsNothingThatIsNotFiniteIsStored) {
  if (GetParam() == "emulation") GTEST_SKIP() << "what decides is the trainer's, not the backend's";
  for (const Precision precision : {Precision::bf16, Precision::fp32}) {
    config.precision = precision;
    for (const auto& [place, name] : kPlaces) {
      const auto trainer = make_trainer(GetParam());
      take(*trainer, 0);
      const State before = state_of(*trainer);
      backend->arm(place, kNan, 0);
      EXPECT_FALSE(take(*trainer, 1).skipped.empty()) << name;
      EXPECT_TRUE(state_of(*trainer) == before) << name;
      take(*trainer, 2);
      expect_finite(state_of(*trainer));
    }
  }
}

TEST_F(NonFiniteTest, AnInfinityThatFp8SaturatesIsFound) {
  // Cast to FP8 it becomes the largest number, and the loss and all gradients are finite.
  const auto trainer = make_trainer();
  take(*trainer, 0);
  backend->arm(Place::hidden, kInfinity, 0);
  const StepResult result = take(*trainer, 1);
  EXPECT_TRUE(std::isfinite(result.loss.nats));
  EXPECT_GE(result.casts.infinite, 1);
  EXPECT_TRUE(contains(result.skipped, "infinities cast to FP8")) << result.skipped;
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

}  // namespace
}  // namespace quaver
