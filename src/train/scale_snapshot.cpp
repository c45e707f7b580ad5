#include "train/scale_snapshot.h"

#include <algorithm>

namespace quaver {

void ScaleSnapshot::prepare() {
  slots_ = list_.slots();
  if (list_.version() == version_) return;
  version_ = list_.version();
  groups_.clear();
  for (const auto& slot : slots_) {
    for (const Tensor& tensor : {slot->scale, slot->amax_history})
      groups_[tensor.elements()].originals.push_back(tensor);
  }
  for (auto& [elements, group] : groups_) {
    group.copies =
        backend_.allocate(DType::f32, {static_cast<std::int64_t>(group.originals.size()) * elements});
  }
}

void ScaleSnapshot::take() {
  prepare();
  for (const auto& [elements, group] : groups_) backend_.gather(group.originals, group.copies);
  channels_.clear();
  for (Linear* const linear : list_.linears()) {
    if (linear->smooths_input()) channels_.emplace_back(linear, linear->fp8().channels);
  }
}

void ScaleSnapshot::restore() {
  for (const auto& [linear, channels] : channels_) linear->fp8().channels = channels;
  for (const auto& [elements, group] : groups_) {
    std::int64_t begin = 0;
    for (const Tensor& original : group.originals) {
      backend_.copy(group.copies.slice(begin, elements), original);
      begin += elements;
    }
  }
  for (const auto& slot : list_.slots()) {
    if (std::find(slots_.begin(), slots_.end(), slot) != slots_.end()) continue;
    backend_.fill(slot->scale, 1);
    backend_.fill(slot->amax_history, 0);
  }
}

}  // namespace quaver
