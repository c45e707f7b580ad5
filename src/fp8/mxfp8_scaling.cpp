// MXFP8: E8M0 scales of 32 numbers along the contraction.
#include "fp8/mxfp8_scaling.h"

namespace quaver {
namespace {

constexpr std::int64_t kBlock = 32;

class MxRule final : public ScaleRule {
 public:
  DType stored() const override { return DType::e8m0; }
  float block_scale_inv(float amax, float, float largest) const override { return amax / largest; }
};

}  // namespace

const std::shared_ptr<const ScaleRule>& mxfp8_scale_rule() {
  static const std::shared_ptr<const ScaleRule> rule = std::make_shared<MxRule>();
  return rule;
}

OperandCast Mxfp8Scaling::cast_of(OperandRole role, Gemm gemm) const {
  const bool e5m2 = role == OperandRole::grad_output && fp8_format == Fp8Format::hybrid;
  // The contraction runs over the columns of both operands of fprop and of dy in dgrad, over the rows of all others.
  const bool along_columns = gemm == Gemm::fprop || (gemm == Gemm::dgrad && role == OperandRole::grad_output);
  return {e5m2 ? DType::e5m2 : DType::e4m3, along_columns ? 1 : kBlock, along_columns ? kBlock : 1,
          mxfp8_scale_rule()};
}

}  // namespace quaver
