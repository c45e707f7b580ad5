#include <algorithm>
#include <cfloat>
#include <cmath>
#include <utility>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"

namespace quaver {

namespace {

constexpr std::int64_t kBlock = 64;  // slots

void take_ahead(const ScalingSlot& slot) {
  if (!slot.ahead_amax) return;
  float &staged = *slot.amax_history.data<float>(), &ahead = *slot.ahead_amax.data<float>();
  staged = std::fmax(staged, std::exchange(ahead, 0.0f));
  auto *counters = slot.counters.data<std::int64_t>(), *counted = slot.ahead_counters.data<std::int64_t>();
  for (int i = 0; i < kCastCounters; ++i) counters[i] += std::exchange(counted[i], 0);
}

void update_scale(const ScaleUpdate& update) {
  take_ahead(update.slot);
  float* history = update.slot.amax_history.data<float>();
  float* scale = update.slot.scale.data<float>();
  const std::int64_t length = update.slot.amax_history.elements();
  const float last = history[0];
  if (last == 0.0f) return;
  // The window in order of age; its oldest entry still takes part in the maximum.
  std::rotate(history, history + 1, history + length);
  float largest = 0.0f;
  for (std::int64_t i = 0; i < length; ++i) largest = history[i] > largest ? history[i] : largest;
  float amax = update.algo == AmaxCompute::max ? largest : last;
  if (update.algo == AmaxCompute::custom)
    amax = (*update.function)({history, static_cast<std::size_t>(length)});
  history[0] = 0.0f;
  if (!(amax > 0.0f) || !std::isfinite(amax)) return;
  const float next = std::ldexp(update.fp8_max, -update.margin) / amax;
  *scale = std::isinf(next) ? FLT_MAX : next;
}

}  // namespace

void CpuBackend::update_scales(std::span<const ScaleUpdate> updates) {
  check_update_scales(updates);
  threads_.for_blocks(static_cast<std::int64_t>(updates.size()), kBlock,
                      [&](std::int64_t begin, std::int64_t end) {
                        for (const ScaleUpdate& update : updates.subspan(begin, end - begin))
                          update_scale(update);
                      });
}

}  // namespace quaver
