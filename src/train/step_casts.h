/// What the casts of one step count.
#pragma once

#include <cstdint>
#include <vector>

#include "quaver/backend.h"
#include "train/fp8_report.h"
#include "train/slot_list.h"

namespace quaver {

/// The counters of all slots before and after a step, on the device: nothing waits for it but `counts`.
class StepCasts {
 public:
  /// Backend and slots must outlive it.
  StepCasts(Backend& backend, SlotList& slots) : backend_(backend), list_(slots) {}
  /// Around the step's casts: a forward may make slots that `begin` did not see.
  void begin();
  void end();
  /// Counters of the slots of then, i64[slots, kCastCounters]. They stay what they are until the next `begin`.
  const Tensor& before() const { return before_; }
  const Tensor& after() const { return after_; }
  /// After minus before, summed over the slots: one copy to the host.
  CastCounts counts();

 private:
  void list_slots();

  Backend& backend_;
  SlotList& list_;
  std::uint64_t version_ = 0;  // of the list from which `counters_` was made
  std::vector<Tensor> counters_;
  Tensor both_, before_, after_;  // parts of `both_`
  std::vector<std::int64_t> values_;
};

}  // namespace quaver
