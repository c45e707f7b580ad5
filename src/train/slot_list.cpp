#include "train/slot_list.h"

#include "train/fp8_policy.h"

namespace quaver {
namespace {

/// Calls f with every slot that a Linear of the list owns.
template <typename F>
void for_slots(const std::vector<Linear*>& linears, const F& f) {
  for (const Linear* linear : linears) {
    const Fp8State& state = linear->fp8();
    if (state.owns_input && state.input) f(state.input);
    if (state.weight) f(state.weight);
    if (state.grad_output) f(state.grad_output);
  }
}

}  // namespace

SlotList::SlotList(Module& module) {
  for (const NamedLinear& named : linears_of(module)) linears_.push_back(named.linear);
}

bool SlotList::is_current() const {
  auto known = slots_.begin();
  bool same = true;
  for_slots(linears_, [&](const auto& slot) { same = same && known != slots_.end() && *known++ == slot; });
  return same && known == slots_.end();
}

const std::vector<std::shared_ptr<ScalingSlot>>& SlotList::slots() {
  if (!is_current()) {
    slots_.clear();
    for_slots(linears_, [&](const auto& slot) { slots_.push_back(slot); });
    ++version_;
  }
  return slots_;
}

}  // namespace quaver
