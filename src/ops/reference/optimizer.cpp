#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/contracts.h"
#include "ops/reference/optimizer_state.h"
#include "ops/reference/reference_backend.h"
#include "ops/step_noise.h"

namespace quaver {

void ReferenceBackend::global_norm(std::span<const Tensor> tensors, const Tensor& result) {
  check_global_norm(tensors, result);
  double squares = 0;
  for (const Tensor& tensor : tensors) {
    for (std::int64_t i = 0; i < tensor.elements(); ++i)
      squares += std::pow(static_cast<double>(tensor.data<float>()[i]), 2);
  }
  *result.data<float>() = static_cast<float>(std::sqrt(squares));
}

void ReferenceBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                             std::span<const AdamWTensor> tensors) {
  check_adamw(norm, tensors);
  const float length = *norm.data<float>();
  if (!is_usable_norm(length, max_norm)) return;
  const float clip = max_norm > 0 ? std::min(1.0f, max_norm / length) : 1.0f;
  const auto correction = [&](float beta) {
    return static_cast<float>(1 - std::pow(static_cast<double>(beta), static_cast<double>(step.step)));
  };
  const float correction1 = correction(step.beta1), correction2 = correction(step.beta2);
  for (const AdamWTensor& tensor : tensors) {
    const Tensor& value = tensor.value;
    const WeightCopies& copies = tensor.copies;
    const bool coded = tensor.m.dtype() == DType::e4m3;
    const float decay = tensor.decays ? step.weight_decay : 0;
    std::vector<float> w = reference::read_state(value);
    std::vector<float> m = reference::read_state(tensor.m, tensor.m_scales);
    std::vector<float> v = reference::read_state(tensor.v, tensor.v_scales);
    for (std::int64_t i = 0; i < value.elements(); ++i) {
      const float g = tensor.gradient.data<float>()[i] * clip;
      if (coded) v[i] *= v[i];
      m[i] = step.beta1 * m[i] + (1 - step.beta1) * g;
      v[i] = step.beta2 * v[i] + (1 - step.beta2) * g * g;
      w[i] -= step.lr * (m[i] / correction1 / (std::sqrt(v[i] / correction2) + step.epsilon) + decay * w[i]);
      if (coded) v[i] = std::sqrt(v[i]);
    }
    const auto noise = [&](StepArray array) { return step_noise(step, tensor, array); };
    reference::write_state(w, noise(StepArray::value), value);
    if (coded) {
      reference::write_codes(m, noise(StepArray::m), 0, tensor.m, tensor.m_scales);
      reference::write_codes(v, noise(StepArray::v), 1, tensor.v, tensor.v_scales);
    } else {
      reference::write_state(m, noise(StepArray::m), tensor.m);
      reference::write_state(v, noise(StepArray::v), tensor.v);
    }
    if (copies.bf16) convert(value, copies.bf16);
    if (copies.fp8.defined()) cast(value, {{}, copies.fp8, copies.quantizer});
  }
}

}  // namespace quaver
