/// Scales and amax histories of a model as they are before a step, to be put back when the step is not taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "quaver/backend.h"
#include "quaver/linear.h"

namespace quaver {

/// Copies on the device, made with a launch for hundreds of slots and without waiting for the host.
class ScaleSnapshot {
 public:
  /// Backend and module must outlive the snapshot.
  ScaleSnapshot(Backend& backend, Module& module);
  /// Makes every slot what it was; one that did not exist then becomes new: scale 1, no amaxes.
  void restore() const;

 private:
  /// Tensors of one size, side by side.
  struct Group {
    std::vector<Tensor> originals;
    Tensor copies;
  };

  Backend& backend_;
  Module& module_;
  std::vector<std::shared_ptr<ScalingSlot>> slots_;
  std::map<std::int64_t, Group> groups_;  // by number of elements
  /// Of linears that smooth their input. A forward replaces these tensors and writes into none, so the old ones are kept.
  std::vector<std::pair<Linear*, ChannelScales>> channels_;
};

}  // namespace quaver
