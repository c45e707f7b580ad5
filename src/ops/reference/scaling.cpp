#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "ops/contracts.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

void take_ahead(const ScalingSlot& slot) {
  if (!slot.ahead_amax) return;
  float &staged = *slot.amax_history.data<float>(), &ahead = *slot.ahead_amax.data<float>();
  staged = std::fmax(staged, ahead);
  ahead = 0;
  for (int i = 0; i < kCastCounters; ++i) {
    std::int64_t& count = slot.ahead_counters.data<std::int64_t>()[i];
    slot.counters.data<std::int64_t>()[i] += count;
    count = 0;
  }
}

/// The rule at ScaleUpdater in quaver/scaling.h, line by line.
void update_slot(const ScaleUpdate& update) {
  float& scale = *update.slot.scale.data<float>();
  float* history = update.slot.amax_history.data<float>();
  const std::int64_t length = update.slot.amax_history.elements();
  take_ahead(update.slot);

  const float last = history[0];
  if (last == 0) return;
  std::vector<float> window(history + 1, history + length);
  window.push_back(last);

  float amax = last;
  if (update.algo == AmaxCompute::max) {
    amax = 0;
    for (const float entry : window) amax = std::fmax(amax, entry);
  }
  if (update.algo == AmaxCompute::custom) amax = (*update.function)(window);
  std::copy(window.begin(), window.end(), history);
  history[0] = 0;

  if (std::isfinite(amax) && amax > 0) scale = std::ldexp(update.fp8_max, -update.margin) / amax;
  if (std::isinf(scale)) scale = FLT_MAX;
}

}  // namespace

void ReferenceBackend::update_scales(std::span<const ScaleUpdate> updates) {
  check_update_scales(updates);
  for (const ScaleUpdate& update : updates) update_slot(update);
}

}  // namespace quaver
