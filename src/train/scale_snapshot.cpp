#include "train/scale_snapshot.h"

#include <algorithm>

#include "train/fp8_policy.h"
#include "train/fp8_report.h"

namespace quaver {
ScaleSnapshot::ScaleSnapshot(Backend& backend, Module& module)
    : backend_(backend), module_(module), slots_(slots_of(module)) {
  for (const auto& slot : slots_) {
    for (const Tensor& tensor : {slot->scale, slot->amax_history})
      groups_[tensor.elements()].originals.push_back(tensor);
  }
  for (auto& [elements, group] : groups_) {
    group.copies =
        backend.allocate(DType::f32, {static_cast<std::int64_t>(group.originals.size()) * elements});
    backend.gather(group.originals, group.copies);
  }
  for (const auto& [name, linear] : linears_of(module)) {
    if (linear->smooths_input()) channels_.emplace_back(linear, linear->fp8().channels);
  }
}

void ScaleSnapshot::restore() const {
  for (const auto& [linear, channels] : channels_) linear->fp8().channels = channels;
  for (const auto& [elements, group] : groups_) {
    std::int64_t begin = 0;
    for (const Tensor& original : group.originals) {
      backend_.copy(group.copies.slice(begin, elements), original);
      begin += elements;
    }
  }
  for (const auto& slot : slots_of(module_)) {
    if (std::find(slots_.begin(), slots_.end(), slot) != slots_.end()) continue;
    backend_.fill(slot->scale, 1);
    backend_.fill(slot->amax_history, 0);
  }
}

}  // namespace quaver
