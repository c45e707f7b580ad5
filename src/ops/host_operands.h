/// Operands of products on the host that are not multiplied as they are stored.
#pragma once

#include "quaver/backend.h"

namespace quaver {

/// Whether the product is that of bf16 copies: one operand has blocks or is E2M1, or one is quantised and the other not.
bool multiplies_widened(const GemmOperand& a, const GemmOperand& b);

/// The operand in bf16, with its tensor's scale_inv; a real one as it is.
GemmOperand widened(Backend& backend, const GemmOperand& operand);

/// The product of the scale_inv that there are, rounded once.
float product_scale(const GemmOperand& a, const GemmOperand& b);

}  // namespace quaver
