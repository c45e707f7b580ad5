#include "nn/recompute.h"

namespace quaver {

void form_product_again(Linear& reader, const Backend& backend, Recompute recompute) {
  const bool asked = recompute == Recompute::gated;
  reader.form_input_again(asked || !backend.needs_transposed_fp8(), asked);
}

void keep_scales(Backend& backend, std::span<Tensor* const> scales) {
  if (scales.empty()) return;
  const auto count = static_cast<std::int64_t>(scales.size());
  const Tensor copies = backend.allocate(DType::f32, {count});
  std::vector<Tensor> sources;
  for (const Tensor* scale : scales) sources.push_back(*scale);
  backend.gather(sources, copies);
  for (std::int64_t i = 0; i < count; ++i) *scales[static_cast<std::size_t>(i)] = copies.slice(i, 1);
}

}  // namespace quaver
