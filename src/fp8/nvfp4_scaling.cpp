// NVFP4: E2M1 elements, E4M3 scales of 16, an FP32 scale of the tensor.
#include <cfloat>
#include <cmath>

#include "quaver/fp8_format.h"
#include "quaver/recipe.h"

namespace quaver {
namespace {

constexpr std::int64_t kBlock = 16;

class Nvfp4Rule final : public ScaleRule {
 public:
  DType stored() const override { return DType::e4m3; }
  bool scales_tensor() const override { return true; }
  /// Then the largest block's scale_inv is E4M3's largest number.
  float tensor_scale(float amax, float largest) const override {
    if (!(amax > 0) || !std::isfinite(amax)) return 1;
    return std::fmin(fp8_max(DType::e4m3) * largest / amax, FLT_MAX);
  }
  float block_scale_inv(float amax, float tensor_scale, float largest) const override {
    return amax / largest * tensor_scale;
  }
};

}  // namespace

OperandCast Nvfp4Scaling::cast_of(OperandRole role, Gemm gemm) const {
  static const std::shared_ptr<const ScaleRule> rule = std::make_shared<Nvfp4Rule>();
  OperandCast cast{DType::e2m1,
                   1,
                   kBlock,
                   rule,
                   stochastic_rounding && role == OperandRole::grad_output,
                   random_hadamard && gemm == Gemm::wgrad};
  if (role == OperandRole::weight) {
    cast.block_rows = kBlock;
  } else if (gemm == Gemm::wgrad) {
    cast.block_rows = kBlock;
    cast.block_cols = 1;
  }
  return cast;
}

}  // namespace quaver
