#include "train/fp8_health.h"

namespace quaver {
namespace {

CastTotals totals_of(const std::vector<std::int64_t>& counters) {
  if (counters.empty()) return {};
  return {counters[kCastElements], counters[kCastSaturated], counters[kCastUnderflowed],
          counters[kCastNan],      counters[kCastInfinite],  counters[kCastZeros]};
}

/// The element type of a slot: as its recipe says, or else as the newest product with it read it.
DType format_of(const LinearState& state, std::optional<SlotState> LinearState::*slot) {
  const auto& [fprop, dgrad, wgrad] = state.gemms;
  const bool is_gradient = slot == &LinearState::grad_output;
  if (const auto* delayed = std::get_if<DelayedScaling>(&*state.recipe))
    return is_gradient ? gradient_dtype(*delayed) : forward_dtype(*delayed);
  if (is_gradient) return is_quantized(dgrad.a) ? dgrad.a : wgrad.a;
  if (slot == &LinearState::weight) return is_quantized(fprop.b) ? fprop.b : dgrad.b;
  return is_quantized(fprop.a) ? fprop.a : wgrad.b;
}

}  // namespace

std::vector<CastTensor> cast_tensors(std::span<const LinearState> states) {
  std::vector<CastTensor> tensors;
  for (const LinearState& state : states) {
    if (!state.recipe) continue;
    const auto* delayed = std::get_if<DelayedScaling>(&*state.recipe);
    for (const auto& [slot_name, member] : kSlots) {
      const auto& slot = state.*member;
      if (!slot) continue;
      const CastTotals totals = totals_of(slot->counters);
      if (totals.cast == 0) continue;
      tensors.push_back({state.name + "." + slot_name, format_of(state, member),
                         delayed ? delayed->amax_compute_algo : AmaxCompute::most_recent,
                         delayed ? delayed->margin : 0, slot->scale,
                         delayed ? slot->amax_history : std::vector<float>(), totals, slot->exponents});
    }
  }
  return tensors;
}

}  // namespace quaver
