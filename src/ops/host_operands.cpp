#include "ops/host_operands.h"

#include "base/check.h"

namespace quaver {
namespace {

bool multiplies_copies(const GemmOperand& a, const GemmOperand& b) {
  const bool as_stored = is_fp8(a.dtype()) && is_fp8(b.dtype()) && !a.blocks.scale_inv && !b.blocks.scale_inv;
  return (is_quantized(a.dtype()) || is_quantized(b.dtype())) && !as_stored;
}

Tensor bf16_copy(Backend& backend, const GemmOperand& operand) {
  if (!is_quantized(operand.dtype())) return operand.values;
  const Tensor copy = backend.allocate(DType::bf16, {operand.rows(), operand.cols()});
  backend.dequantize({operand.values, {}, operand.scale_inv, operand.blocks, operand.e2m1_cols}, copy);
  return copy;
}

std::optional<float> product_scale(const GemmOperand& a, const GemmOperand& b) {
  std::optional<float> scale;
  for (const GemmOperand* operand : {&a, &b}) {
    if (is_quantized(operand->dtype()) && operand->scale_inv)
      scale = scale.value_or(1) * *operand->scale_inv.data<float>();
  }
  return scale;
}

}  // namespace

ProductOperands product_operands(Backend& backend, const GemmOperand& a, const GemmOperand& b) {
  for (const GemmOperand* operand : {&a, &b})
    require(operand->values.defined(), "gemm: the backend {} reads row-major bytes, which are absent",
            backend.name());
  const std::optional<float> scale = product_scale(a, b);
  if (!multiplies_copies(a, b)) return {a.values, b.values, scale};
  return {bf16_copy(backend, a), bf16_copy(backend, b), scale};
}

}  // namespace quaver
