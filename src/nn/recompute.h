/// Forward passes that backward makes again instead of keeping what they computed (model.recompute).
#pragma once

#include <span>
#include <vector>

#include "quaver/autocast.h"
#include "quaver/backend.h"
#include "quaver/linear.h"
#include "quaver/model_config.h"

namespace quaver {

/// For the Linear behind an activation or a gate: its input is formed again in backward if model.recompute asks for it, and in FP8
/// wherever that costs next to nothing, which is where products read no transposed copies.
void form_product_again(Linear& reader, const Backend& backend, Recompute recompute);

/// Replaces scales (f32[1]) of slots, which the end of the Autocast scope changes, by copies: one launch for all of them.
void keep_scales(Backend& backend, std::span<Tensor* const> scales);

/// Runs `forward(saved)`, drops what it saved, and returns its result with what it takes to run it again.
template <typename Saved, typename Forward>
auto forward_and_forget(Backend& backend, Context& context, ForwardRecord& record, const Forward& forward) {
  // Saving decides what is cast: the discarded copy makes this the very forward that backward will repeat.
  Saved discarded;
  const RecordForward recording(context, record);
  auto y = forward(&discarded);
  std::vector<Tensor*> scales;
  for (Tensor& scale : record.scales) scales.push_back(&scale);
  keep_scales(backend, scales);
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
