#include <cfloat>

#include <cmath>

#include "base/check.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 128;  // one block per slot

/// Slots of one launch; small enough to be a kernel's parameter.
struct Slots {
  static constexpr int kMost = 64;
  struct Slot {
    float *scale, *history;
    std::int64_t length;
    float target;     // fp8_max * 2^-margin
    int most_recent;  // a number: no padding
    float* ahead_amax;
    unsigned long long *counters, *ahead_counters;
  };
  Slot slots[kMost];
};

/// All threads of the block see the history after it.
__device__ void take_ahead(const Slots::Slot& slot) {
  if (!slot.ahead_amax) return;
  if (threadIdx.x < kCastCounters) {
    slot.counters[threadIdx.x] += slot.ahead_counters[threadIdx.x];
    slot.ahead_counters[threadIdx.x] = 0;
  }
  if (threadIdx.x == 0) {
    slot.history[0] = fmaxf(slot.history[0], *slot.ahead_amax);
    *slot.ahead_amax = 0;
  }
  __syncthreads();
}

/// The rule at ScaleUpdater in quaver/scaling.h.
__global__ void __launch_bounds__(kThreads) update_slots(Slots slots) {
  const Slots::Slot slot = slots.slots[blockIdx.x];
  take_ahead(slot);
  const float last = slot.history[0];
  if (last == 0) return;
  float largest = 0;
  for (std::int64_t i = threadIdx.x; i < slot.length; i += kThreads)
    largest = fmaxf(largest, slot.history[i]);
  largest = block_reduce<kThreads>(largest, Largest{});
  // Entries move down by one, kThreads at a time: all are read before one is written.
  for (std::int64_t begin = 0; begin < slot.length; begin += kThreads) {
    const std::int64_t i = begin + threadIdx.x;
    const float next = i + 1 < slot.length ? slot.history[i + 1] : last;
    __syncthreads();
    if (i < slot.length) slot.history[i] = i == 0 ? 0.0f : next;
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const float amax = slot.most_recent ? last : largest;
  float scale = *slot.scale;
  if (amax > 0 && amax <= FLT_MAX) scale = slot.target / amax;
  *slot.scale = scale == HUGE_VALF ? FLT_MAX : scale;
}

}  // namespace

void DeviceBackend::update_scales(std::span<const ScaleUpdate> updates) {
  check_update_scales(updates);
  for (const ScaleUpdate& update : updates) {
    require(update.algo != AmaxCompute::custom,
            "update_scales: an amax_function runs on the host; the backend {} keeps histories on its device. "
            "Hint: "
            "amax_compute_algo = max or most_recent, or the backend cpu",
            name());
  }
  while (!updates.empty()) {
    const std::size_t count = std::min<std::size_t>(updates.size(), Slots::kMost);
    Slots slots{};
    for (std::size_t i = 0; i < count; ++i) {
      const ScaleUpdate& update = updates[i];
      Slots::Slot& slot = slots.slots[i];
      slot.scale = update.slot.scale.data<float>();
      slot.history = update.slot.amax_history.data<float>();
      slot.length = update.slot.amax_history.elements();
      slot.target = std::ldexp(update.fp8_max, -update.margin);
      slot.most_recent = update.algo == AmaxCompute::most_recent;
      if (!update.slot.ahead_amax) continue;
      slot.ahead_amax = update.slot.ahead_amax.data<float>();
      slot.counters = update.slot.counters.data<unsigned long long>();
      slot.ahead_counters = update.slot.ahead_counters.data<unsigned long long>();
    }
    launch("update_scales", update_slots, {count, kThreads}, stream(), slots);
    updates = updates.subspan(count);
  }
}

}  // namespace quaver::cuda
