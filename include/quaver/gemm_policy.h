/// Which of a Linear's three GEMMs run in FP8 inside an enabled Autocast scope.
#pragma once

#include <array>
#include <string>

namespace quaver {

/// Whether one GEMM follows the scope's recipe; if not it runs in the context's high precision, and `why_not` says
/// who decided so.
struct GemmPolicy {
  bool fp8 = true;
  std::string why_not;
  friend bool operator==(const GemmPolicy&, const GemmPolicy&) = default;
};

/// For fprop, dgrad and wgrad: the order of the enumeration `Gemm` (backend.h).
using GemmPolicies = std::array<GemmPolicy, 3>;

}  // namespace quaver
