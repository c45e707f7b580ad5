#include "ops/host_operands.h"

namespace quaver {

bool multiplies_widened(const GemmOperand& a, const GemmOperand& b) {
  const bool as_stored = is_fp8(a.dtype()) && is_fp8(b.dtype()) && !a.blocks.scale_inv && !b.blocks.scale_inv;
  return (is_quantized(a.dtype()) || is_quantized(b.dtype())) && !as_stored;
}

GemmOperand widened(Backend& backend, const GemmOperand& operand) {
  if (!is_quantized(operand.dtype())) return operand;
  GemmOperand wide(backend.allocate(DType::bf16, {operand.rows(), operand.cols()}));
  backend.dequantize({operand.values, {}, operand.scale_inv, operand.blocks, operand.e2m1_cols}, wide.values);
  wide.scale_inv = operand.scale_inv;
  return wide;
}

float product_scale(const GemmOperand& a, const GemmOperand& b) {
  const auto scale_of = [](const GemmOperand& x) { return x.scale_inv ? *x.scale_inv.data<float>() : 1.0f; };
  return scale_of(a) * scale_of(b);
}

}  // namespace quaver
