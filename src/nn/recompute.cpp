#include "nn/recompute.h"

namespace quaver {

void keep_scales(Backend& backend, ForwardRecord& record) {
  if (record.scales.empty()) return;
  const auto count = static_cast<std::int64_t>(record.scales.size());
  const Tensor copies = backend.allocate(DType::f32, {count});
  backend.gather(record.scales, copies);
  for (std::int64_t i = 0; i < count; ++i) record.scales[static_cast<std::size_t>(i)] = copies.slice(i, 1);
}

}  // namespace quaver
