// Blocks of 128: powers of two from the block itself.
#include "fp8/block_scaling.h"

#include <bit>
#include <cfloat>
#include <cmath>

namespace quaver {
namespace {

constexpr std::int64_t kBlock = 128;

/// fp8_max / amax as in current scaling, then without its mantissa: rounded down to a power of two.
class PowerOfTwoRule final : public ScaleRule {
 public:
  float block_scale_inv(float amax, float, float largest) const override {
    if (!(amax > 0) || !std::isfinite(amax)) return 1;
    const float scale = std::fmin(largest / amax, FLT_MAX);
    return 1 / std::bit_cast<float>(std::bit_cast<std::uint32_t>(scale) & 0xFF800000u);
  }
};

}  // namespace

const std::shared_ptr<const ScaleRule>& block_scale_rule() {
  static const std::shared_ptr<const ScaleRule> rule = std::make_shared<PowerOfTwoRule>();
  return rule;
}

OperandCast BlockScaling::cast_of(OperandRole role, Gemm gemm) const {
  const std::shared_ptr<const ScaleRule>& rule = block_scale_rule();
  if (role == OperandRole::weight) return {DType::e4m3, kBlock, kBlock, rule};
  if (gemm == Gemm::wgrad) return {DType::e4m3, kBlock, 1, rule};
  return {DType::e4m3, 1, kBlock, rule};
}

}  // namespace quaver
