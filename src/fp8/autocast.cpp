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
  return scopes_.empty() ? none : scopes_.back();
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
  add(forward_, slot, recipe);
}

void Context::register_backward(const std::shared_ptr<ScalingSlot>& slot, const Recipe& recipe) {
  require(in_backward_pass_,
          "autocast: an FP8 backward outside a BackwardPass: its scales would never be updated");
  add(backward_, slot, recipe);
}

void Context::update(std::vector<Registered>& list, bool gradients) {
  std::vector<ScaleUpdate> updates;
  updates.reserve(list.size());
  for (const auto& [slot, recipe] : list) {
    const auto& delayed = std::get<DelayedScaling>(recipe);
    const DType format = gradients ? gradient_dtype(delayed) : forward_dtype(delayed);
    updates.push_back(
        {*slot, fp8_max(format), delayed.margin, delayed.amax_compute_algo, delayed.amax_function});
  }
  list.clear();
  if (!updates.empty()) updater_.update_scales(updates);
}

Autocast::Autocast(Context& context, bool enabled, Recipe recipe)
    : context_(context), exceptions_at_entry_(std::uncaught_exceptions()) {
  require(!enabled || context.high_precision() == DType::bf16,
          "autocast: FP8 needs a bf16 context; this one computes in f32 (for checking)");
  context_.scopes_.push_back(enabled ? std::optional<Recipe>(recipe) : std::nullopt);
}

Autocast::~Autocast() noexcept(false) {
  context_.scopes_.pop_back();
  if (!context_.scopes_.empty()) return;
  if (std::uncaught_exceptions() > exceptions_at_entry_) {
    context_.forward_.clear();
    return;
  }
  context_.update(context_.forward_, false);
}

BackwardPass::BackwardPass(Context& context)
    : context_(context), exceptions_at_entry_(std::uncaught_exceptions()) {
  require(!context.in_backward_pass_, "autocast: a backward pass inside a backward pass");
  context_.in_backward_pass_ = true;
}

BackwardPass::~BackwardPass() noexcept(false) {
  context_.in_backward_pass_ = false;
  if (std::uncaught_exceptions() > exceptions_at_entry_) {
    context_.backward_.clear();
    return;
  }
  context_.update(context_.backward_, true);
}

}  // namespace quaver
