#include "train/step_casts.h"

namespace quaver {

void StepCasts::list_slots() {
  const auto& slots = list_.slots();
  if (list_.version() == version_) return;
  version_ = list_.version();
  counters_.clear();
  for (const auto& slot : slots) counters_.push_back(slot->counters);
}

void StepCasts::begin() {
  list_slots();
  const auto slots = static_cast<std::int64_t>(counters_.size());
  if (!both_ || before_.rows() != slots || after_.rows() != slots) {
    both_ = backend_.allocate(DType::i64, {2 * slots, kCastCounters});
    before_ = both_.slice(0, slots);
    after_ = both_.slice(slots, slots);
  }
  backend_.gather(counters_, before_);
}

void StepCasts::end() {
  list_slots();
  const auto slots = static_cast<std::int64_t>(counters_.size());
  if (slots != after_.rows()) {
    const std::int64_t earlier = before_.rows();
    both_ = backend_.allocate(DType::i64, {earlier + slots, kCastCounters});
    backend_.copy(before_, both_.slice(0, earlier));
    before_ = both_.slice(0, earlier);
    after_ = both_.slice(earlier, slots);
  }
  backend_.gather(counters_, after_);
}

CastCounts StepCasts::counts() {
  values_.resize(static_cast<std::size_t>(both_.elements()));
  backend_.copy_to_host(both_, values_.data());
  const std::span<const std::int64_t> all = values_;
  const auto earlier = static_cast<std::size_t>(before_.elements());
  return sum_of_counters(all.subspan(earlier)) - sum_of_counters(all.first(earlier));
}

}  // namespace quaver
