#include <algorithm>
#include <cmath>

#include "ops/contracts.h"
#include "ops/reference/reference_backend.h"

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
  for (const auto& [gradient, value, m, v, decays, copies] : tensors) {
    const float decay = decays ? step.weight_decay : 0;
    for (std::int64_t i = 0; i < value.elements(); ++i) {
      const float g = gradient.data<float>()[i] * clip;
      float &m_i = m.data<float>()[i], &v_i = v.data<float>()[i], &w = value.data<float>()[i];
      m_i = step.beta1 * m_i + (1 - step.beta1) * g;
      v_i = step.beta2 * v_i + (1 - step.beta2) * g * g;
      w -= step.lr * (m_i / correction1 / (std::sqrt(v_i / correction2) + step.epsilon) + decay * w);
    }
    if (copies.bf16) convert(value, copies.bf16);
    if (copies.fp8.defined()) cast(value, {{}, copies.fp8, copies.quantizer});
  }
}

}  // namespace quaver
