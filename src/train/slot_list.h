/// The FP8 slots of a model, kept from step to step.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quaver/linear.h"

namespace quaver {

/// Linears are listed once, because a model keeps them; slots come and change while it runs (a first step, another history length,
/// a loaded state), and are listed anew only then: a list costs more than everything else that is done with it in a step.
class SlotList {
 public:
  /// The module must outlive the list.
  explicit SlotList(Module& module);

  /// Every slot as of now; a shared input once. The order is that of the Linears, and of input, weight and output gradient.
  const std::vector<std::shared_ptr<ScalingSlot>>& slots();
  /// A number that is another one whenever `slots` returned another list.
  std::uint64_t version() const { return version_; }
  const std::vector<Linear*>& linears() const { return linears_; }

 private:
  bool is_current() const;

  std::vector<Linear*> linears_;
  std::vector<std::shared_ptr<ScalingSlot>> slots_;
  std::uint64_t version_ = 0;
};

}  // namespace quaver
