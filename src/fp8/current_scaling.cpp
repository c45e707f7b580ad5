// Current scaling: fp8_max / amax of the tensor itself.
#include <cfloat>
#include <cmath>

#include "fp8/current_scaling.h"

namespace quaver {
namespace {

class CurrentRule final : public ScaleRule {
 public:
  bool scales_tensor() const override { return true; }
  float tensor_scale(float amax, float largest) const override {
    if (!(amax > 0) || !std::isfinite(amax)) return 1;
    return std::fmin(largest / amax, FLT_MAX);
  }
};

}  // namespace

const std::shared_ptr<const ScaleRule>& current_scale_rule() {
  static const std::shared_ptr<const ScaleRule> rule = std::make_shared<CurrentRule>();
  return rule;
}

OperandCast CurrentScaling::cast_of(OperandRole role, Gemm) const {
  const bool e5m2 = role == OperandRole::grad_output && fp8_format == Fp8Format::hybrid;
  return {.format = e5m2 ? DType::e5m2 : DType::e4m3, .rule = current_scale_rule()};
}

}  // namespace quaver
