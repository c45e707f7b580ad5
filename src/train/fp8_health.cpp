#include "train/fp8_health.h"

namespace quaver {
namespace {

CastTotals totals_of(const std::vector<std::int64_t>& counters) {
  if (counters.empty()) return {};
  return {counters[kCastElements], counters[kCastSaturated], counters[kCastUnderflowed],
          counters[kCastNan],      counters[kCastInfinite],  counters[kCastZeros]};
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
      const bool is_gradient = member == &LinearState::grad_output;
      tensors.push_back({state.name + "." + slot_name,
                         is_gradient ? gradient_dtype(*state.recipe) : forward_dtype(*state.recipe),
                         delayed ? delayed->amax_compute_algo : AmaxCompute::most_recent,
                         delayed ? delayed->margin : 0, slot->scale,
                         delayed ? slot->amax_history : std::vector<float>(), totals, slot->exponents});
    }
  }
  return tensors;
}

}  // namespace quaver
