#include "train/fp8_state.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

std::vector<std::int64_t> download_counts(Backend& backend, const Tensor& counts) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(counts.elements()));
  backend.copy_to_host(counts, values.data());
  return values;
}

/// Other recipes than delayed scaling have counts in their slots, and nothing else.
std::optional<SlotState> capture(Backend& backend, const std::shared_ptr<ScalingSlot>& slot, bool delayed) {
  if (!slot) return std::nullopt;
  SlotState state;
  if (delayed) {
    state.scale = download(backend, slot->scale).front();
    state.amax_history = download(backend, slot->amax_history);
  }
  state.counters = download_counts(backend, slot->counters);
  if (slot->exponents) state.exponents = to_histogram(download_counts(backend, slot->exponents));
  return state;
}

void restore(Backend& backend, const std::optional<SlotState>& state, ScalingSlot& slot, bool delayed,
             const std::string& name) {
  if (!state) return;
  if (delayed) {
    if (static_cast<std::int64_t>(state->amax_history.size()) != slot.amax_history.elements()) {
      fail(ErrorKind::data, "{}: an amax history of {} entries under a recipe of {}", name,
           state->amax_history.size(), slot.amax_history.elements());
    }
    backend.copy_from_host(&state->scale, slot.scale);
    backend.copy_from_host(state->amax_history.data(), slot.amax_history);
  }
  if (!state->counters.empty()) backend.copy_from_host(state->counters.data(), slot.counters);
  if (!state->exponents) return;
  slot.exponents = backend.allocate(DType::i64, {kExponents});
  backend.copy_from_host(to_exponents(*state->exponents).data(), slot.exponents);
}

ChannelScales channels_of(Backend& backend, const LinearState& state, std::int64_t features) {
  const std::vector<float>& scales = state.channel_scales;
  if (scales.empty()) return {};
  const auto is_power_of_two = [](float scale) {
    int exponent = 0;
    return std::isfinite(scale) && std::frexp(scale, &exponent) == 0.5f;
  };
  if (static_cast<std::int64_t>(scales.size()) != features ||
      !std::all_of(scales.begin(), scales.end(), is_power_of_two)) {
    fail(ErrorKind::data, "{}.input: expected {} channel scales, powers of two; found {} numbers", state.name,
         features, scales.size());
  }
  std::vector<float> inverses;
  for (const float scale : scales) inverses.push_back(1 / scale);
  return {upload(backend, scales, {features}), upload(backend, inverses, {features})};
}

class Capture : public ModuleVisitor {
 public:
  explicit Capture(Backend& backend) : backend_(backend) {}

  void linear(const std::string& name, Linear& linear) override {
    const Fp8State& fp8 = linear.fp8();
    LinearState state{name, fp8.recipe, fp8.gemms, fp8.owns_input, {}, {}, {}, {}, linear.policy()};
    if (fp8.recipe) {
      const bool delayed = is_delayed(*fp8.recipe);
      if (fp8.owns_input) state.input = capture(backend_, fp8.input, delayed);
      state.weight = capture(backend_, fp8.weight, delayed && !fp8.channels);  // else by current scaling
      state.grad_output = capture(backend_, fp8.grad_output, delayed);
      if (fp8.channels) state.channel_scales = download(backend_, fp8.channels.scale);
    }
    states.push_back(std::move(state));
  }

  std::vector<LinearState> states;

 private:
  Backend& backend_;
};

class Restore : public ModuleVisitor {
 public:
  Restore(Backend& backend, const std::vector<LinearState>& states) : backend_(backend), states_(states) {}

  void linear(const std::string& name, Linear& linear) override {
    if (next_ == states_.size() || states_[next_].name != name) {
      fail(ErrorKind::data, "FP8 state: expected the state of {}, found {}", name,
           next_ == states_.size() ? "the end" : states_[next_].name);
    }
    const LinearState& state = states_[next_++];
    linear.fp8().gemms = state.gemms;
    if (!state.recipe) return;
    const bool delayed = is_delayed(*state.recipe);
    linear.prepare_fp8(*state.recipe);
    restore(backend_, state.input, *linear.fp8().input, delayed, name + ".input");
    restore(backend_, state.weight, *linear.fp8().weight, delayed && state.channel_scales.empty(),
            name + ".weight");
    restore(backend_, state.grad_output, *linear.fp8().grad_output, delayed, name + ".grad_output");
    linear.fp8().channels = channels_of(backend_, state, linear.options().in_features);
  }

  void require_all_used() const {
    if (next_ < states_.size()) {
      fail(ErrorKind::data, "FP8 state: {} is not a module of this model", states_[next_].name);
    }
  }

 private:
  Backend& backend_;
  const std::vector<LinearState>& states_;
  std::size_t next_ = 0;
};

}  // namespace

std::vector<LinearState> capture_fp8_state(Backend& backend, Module& module) {
  Capture visitor(backend);
  module.visit("", visitor);
  return std::move(visitor.states);
}

void restore_fp8_state(Backend& backend, Module& module, const std::vector<LinearState>& states) {
  Restore visitor(backend, states);
  module.visit("", visitor);
  visitor.require_all_used();
}

}  // namespace quaver
