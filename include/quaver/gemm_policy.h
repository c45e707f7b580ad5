/// Which of a Linear's three GEMMs follow a recipe inside an enabled Autocast scope, and which one.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "quaver/recipe.h"

namespace quaver {

/// Whether one GEMM follows a recipe; if not it runs in the context's high precision, and `why_not` says who decided so.
struct GemmPolicy {
  bool fp8 = true;
  std::string why_not;
  std::optional<Recipe> recipe = std::nullopt;  ///< absent: the scope's
  /// By OperandRole: the GEMM reads this operand in high precision all the same.
  std::array<bool, 3> real_operands = {};
  friend bool operator==(const GemmPolicy&, const GemmPolicy&) = default;
};

/// For fprop, dgrad and wgrad: the order of the enumeration `Gemm`.
using GemmPolicies = std::array<GemmPolicy, 3>;

}  // namespace quaver
