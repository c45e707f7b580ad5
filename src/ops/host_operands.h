/// Operands of products on the host, in the form in which they are multiplied.
#pragma once

#include <optional>

#include "quaver/backend.h"

namespace quaver {

struct ProductOperands {
  Tensor a, b;  ///< both real of one type, or both FP8
  std::optional<float>
      scale;  ///< product of the scale_inv of quantised operands, rounded once; absent if there is none
};

/// FP8 operands without blocks and real ones as they are. If one operand has blocks or is E2M1, or one is quantised and the
/// other not, the product is that of bf16 copies.
ProductOperands product_operands(Backend& backend, const GemmOperand& a, const GemmOperand& b);

}  // namespace quaver
