#include "quaver/autocast.h"

#include <algorithm>
#include <exception>

#include "base/check.h"
#include "quaver/fp8_format.h"

namespace quaver {

Context::Context(ScaleUpdater& updater, DType high_precision)
    : updater_(updater), high_precision_(high_precision) {
  require(high_precision == DType::bf16 || high_precision == DType::f32,
          "context: high precision is bf16 or f32, found {}", name_of(high_precision));
}

const std::optional<Recipe>& Context::recipe() const {
  static const std::optional<Recipe> none;
  return scopes_.empty() ? none : scopes_.back().fp8;
}

const std::optional<Recipe>& Context::calibration() const {
  static const std::optional<Recipe> none;
  return scopes_.empty() ? none : scopes_.back().calibration;
}

Context::Scope Context::make_scope(const std::optional<Recipe>& recipe, bool calibrating) {
  return calibrating ? Scope{std::nullopt, recipe} : Scope{recipe, std::nullopt};
}

Tensor Context::input_scale(const ScalingSlot& slot) {
  if (replayed_) {
    require(next_scale_ < replayed_->scales.size(),
            "autocast: a forward that is run again casts more inputs");
    return replayed_->scales[next_scale_++];
  }
  if (recorded_) recorded_->scales.push_back(slot.scale);
  return slot.scale;
}

QuantizedTensor Context::replayed_weight() {
  if (!replayed_) return {};
  require(next_weight_ < replayed_->weights.size(),
          "autocast: a forward that is run again reads more weights");
  return replayed_->weights[next_weight_++];
}

void Context::record_weight(const QuantizedTensor& copy) {
  if (recorded_) recorded_->weights.push_back(copy);
}

void Context::add(std::vector<Registered>& list, const std::shared_ptr<ScalingSlot>& slot,
                  const Recipe& recipe) {
  const bool known =
      std::any_of(list.begin(), list.end(), [&](const Registered& r) { return r.slot == slot; });
  if (!known) list.push_back({slot, recipe});
}

void Context::register_forward(const std::shared_ptr<ScalingSlot>& slot, const Recipe& recipe) {
  require(!scopes_.empty(),
          "autocast: an FP8 forward outside any Autocast scope: its scales would never be updated");
  add(forward_.list, slot, recipe);
}

void Context::register_backward(const std::shared_ptr<ScalingSlot>& slot, const Recipe& recipe) {
  require(in_backward_pass_,
          "autocast: an FP8 backward outside a BackwardPass: its scales would never be updated");
  add(backward_.list, slot, recipe);
}

void Context::update(Registrations& registered, bool gradients) {
  if (registered.list.empty()) return;
  if (registered.list != registered.last) {
    registered.updates.clear();
    for (const auto& [slot, recipe] : registered.list) {
      const auto& delayed = std::get<DelayedScaling>(recipe);
      const DType format = gradients ? gradient_dtype(delayed) : forward_dtype(delayed);
      registered.updates.push_back(
          {*slot, fp8_max(format), delayed.margin, delayed.amax_compute_algo, delayed.amax_function});
    }
    registered.last = registered.list;
  }
  registered.list.clear();
  updater_.update_scales(registered.updates);
}

Autocast::Autocast(Context& context, bool enabled, Recipe recipe, bool calibrating)
    : context_(context), exceptions_at_entry_(std::uncaught_exceptions()) {
  require(!enabled || context.high_precision() == DType::bf16,
          "autocast: FP8 needs a bf16 context; this one computes in f32 (for checking)");
  require(!enabled || !calibrating, "autocast: a scope computes in FP8 or calibrates, not both");
  if (calibrating && !is_delayed(recipe)) {
    fail(ErrorKind::usage,
         "autocast: nothing to calibrate under the recipe {}: it scales by what it casts. Hint: without "
         "calibration, or recipe = \"delayed\"",
         describe(recipe));
  }
  const bool casts = enabled || calibrating;
  context_.scopes_.push_back(Context::make_scope(casts ? std::optional(recipe) : std::nullopt, calibrating));
}

Autocast::~Autocast() noexcept(false) {
  context_.scopes_.pop_back();
  if (!context_.scopes_.empty()) return;
  if (std::uncaught_exceptions() > exceptions_at_entry_) {
    context_.forward_.list.clear();
    return;
  }
  context_.update(context_.forward_, false);
}

RecordForward::RecordForward(Context& context, ForwardRecord& record) : context_(context) {
  require(!context.recorded_ && !context.replayed_, "autocast: a recorded forward inside another");
  record.recipe = context.casting_recipe();
  record.calibrating = context.calibration().has_value();
  record.noise_seed = context.noise_seed();
  record.noise_position = context.noise_position();
  context.recorded_ = &record;
}

ReplayForward::ReplayForward(Context& context, const ForwardRecord& record)
    : context_(context),
      outer_noise_seed_(context.noise_seed()),
      outer_noise_position_(context.noise_position()) {
  require(!context.recorded_ && !context.replayed_, "autocast: a forward run again inside another");
  context.scopes_.push_back(Context::make_scope(record.recipe, record.calibrating));
  context.replayed_ = &record;
  context.next_scale_ = context.next_weight_ = 0;
  context.set_noise(record.noise_seed, record.noise_position);
}

// Nothing was registered, so there is nothing to update, whichever scope this is.
ReplayForward::~ReplayForward() {
  context_.scopes_.pop_back();
  context_.replayed_ = nullptr;
  context_.set_noise(outer_noise_seed_, outer_noise_position_);
}

BackwardPass::BackwardPass(Context& context)
    : context_(context), exceptions_at_entry_(std::uncaught_exceptions()) {
  require(!context.in_backward_pass_, "autocast: a backward pass inside a backward pass");
  context_.in_backward_pass_ = true;
}

BackwardPass::~BackwardPass() noexcept(false) {
  context_.in_backward_pass_ = false;
  if (std::uncaught_exceptions() > exceptions_at_entry_) {
    context_.backward_.list.clear();
    return;
  }
  context_.update(context_.backward_, true);
}

}  // namespace quaver
