/// Forward passes that backward makes again instead of keeping what they computed (model.recompute).
#pragma once

#include "quaver/autocast.h"
#include "quaver/backend.h"

namespace quaver {

/// Copies the recorded scales, which the end of the Autocast scope changes: one launch for all of them.
void keep_scales(Backend& backend, ForwardRecord& record);

/// Runs `forward(saved)`, drops what it saved, and returns its result with what it takes to run it again.
template <typename Saved, typename Forward>
auto forward_and_forget(Backend& backend, Context& context, ForwardRecord& record, const Forward& forward) {
  // Saving decides what is cast: the discarded copy makes this the very forward that backward will repeat.
  Saved discarded;
  const RecordForward recording(context, record);
  auto y = forward(&discarded);
  keep_scales(backend, record);
  return y;
}

/// What `forward(saved)` saves when it is run again.
template <typename Saved, typename Forward>
Saved saved_again(Context& context, const ForwardRecord& record, const Forward& forward) {
  Saved saved;
  const ReplayForward replay(context, record);
  forward(&saved);
  return saved;
}

}  // namespace quaver
