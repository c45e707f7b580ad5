/// Scales and amax histories of a model as they are before a step, to be put back when the step is not taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "quaver/backend.h"
#include "train/slot_list.h"

namespace quaver {

/// Copies on the device, made with a launch for hundreds of slots and without waiting for the host, into memory that is kept.
class ScaleSnapshot {
 public:
  /// Backend and slots must outlive the snapshot.
  ScaleSnapshot(Backend& backend, SlotList& slots) : backend_(backend), list_(slots) {}
  void take();
  /// Makes every slot what it was when the snapshot was taken; one that did not exist then becomes new: scale 1, no amaxes.
  void restore();

 private:
  /// Tensors of one size, side by side.
  struct Group {
    std::vector<Tensor> originals;
    Tensor copies;
  };
  void prepare();

  Backend& backend_;
  SlotList& list_;
  std::uint64_t version_ = 0;  // of the list for which `groups_` was made
  std::vector<std::shared_ptr<ScalingSlot>> slots_;
  std::map<std::int64_t, Group> groups_;  // by number of elements
  /// Of linears that smooth their input. A forward replaces these tensors and writes into none, so the old ones are kept.
  std::vector<std::pair<Linear*, ChannelScales>> channels_;
};

}  // namespace quaver
