/// Recipes: how the operands of a Linear's GEMMs are quantised, chosen at run time per scope, or per module and GEMM
/// (gemm_policy.h).
///
/// There are two kinds. Delayed scaling takes its scales from earlier steps: producers write FP8 while they compute, and
/// scales are state. Every other recipe reads its scales off the tensor itself: it is a function from an operand to an
/// `OperandCast`, which says element type, shape of the blocks that share a scale, and the formula of the scale. Such a
/// recipe needs no state, and a program's own (`CustomScaling`) is written as the library's are.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "quaver/tensor.h"

namespace quaver {

/// The three GEMMs of a Linear y[M,N] = x[M,K] w[N,K]^T.
enum class Gemm {
  fprop,  ///< a = x[M,K],  b = w[N,K]  ->  out[M,N] = a b^T       contraction K
  dgrad,  ///< a = dy[M,N], b = w[N,K]  ->  out[M,K] = a b         contraction N
  wgrad,  ///< a = dy[M,N], b = x[M,K]  ->  out[N,K] = a^T b       contraction M
};
std::string_view name_of(Gemm kind);

/// The three matrices that they read, each in two GEMMs.
enum class OperandRole { input, weight, grad_output };
std::string_view name_of(OperandRole role);
/// a and b of a GEMM.
std::array<OperandRole, 2> operands_of(Gemm kind);

// ---- casts ----

/// The formula of a recipe's scales. A quantised number stands for code * block scale_inv / tensor scale. Functions are
/// pure: casts may call them from several threads, and the result must not depend on when.
class ScaleRule {
 public:
  virtual ~ScaleRule() = default;
  /// In what the scale_inv of a block is stored: f32, e8m0 (then `block_scale_inv` is rounded up to it) or e4m3 (to nearest).
  virtual DType stored() const { return DType::f32; }
  /// Whether there is a scale of the whole tensor, which costs a pass over it.
  virtual bool scales_tensor() const { return false; }
  /// That scale, from the amax of the tensor (NaN ignored) and the element type's largest number. Positive and finite.
  virtual float tensor_scale(float amax, float largest) const;
  /// What one code of a block stands for, times tensor_scale (1 if there is none). `amax` is the block's, NaN ignored.
  virtual float block_scale_inv(float amax, float tensor_scale, float largest) const;
};

/// How one operand of one GEMM is cast. Elements are rounded to nearest, ties to even, and saturate.
struct OperandCast {
  DType format = DType::e4m3;  ///< e4m3, e5m2 or e2m1
  /// Rows and columns of the operand (as the Linear holds it: x [M,K], w [N,K], dy [M,N]) that share a scale; the last
  /// block of a row or column may be smaller. 0, 0: one scale for the tensor.
  std::int64_t block_rows = 0, block_cols = 0;
  std::shared_ptr<const ScaleRule> rule;
  bool stochastic = false;  ///< rounding with random numbers, see CastNoise (scaling.h)
  /// Every 16 rows are turned by a random Hadamard matrix before the cast (a smaller last group is not). It cancels in a
  /// product over the rows, so both operands of a wgrad must have it.
  bool hadamard = false;

  bool scales_blocks() const { return block_rows > 0; }
  friend bool operator==(const OperandCast&, const OperandCast&) = default;
};

// ---- recipes ----

/// hybrid: e4m3 in the forward pass, e5m2 for gradients. e4m3: both passes e4m3.
enum class Fp8Format { hybrid, e4m3 };

/// Which amax of the history window sets the next scale. custom: DelayedScaling::amax_function says it.
enum class AmaxCompute { max, most_recent, custom };

/// The amax that sets the next scale, from the window: the L newest amaxes, the newest last. Pure; runs on the host.
using AmaxFunction = std::function<float(std::span<const float> window)>;

/// One scale per tensor, from the amaxes of earlier steps: scale = fp8_max * 2^-margin / amax. The rule of
/// one update is documented at `ScaleUpdater`.
struct DelayedScaling {
  int margin = 0;
  Fp8Format fp8_format = Fp8Format::hybrid;
  int amax_history_len = 1024;
  AmaxCompute amax_compute_algo = AmaxCompute::most_recent;
  /// Take the maximum of amaxes over all ranks before an update (one process has one rank).
  bool reduce_amax = true;
  /// Of amax_compute_algo = custom.
  std::shared_ptr<const AmaxFunction> amax_function = nullptr;
  friend bool operator==(const DelayedScaling&, const DelayedScaling&) = default;
};

/// One scale per tensor, from this very tensor: fp8_max / amax, 1 if that amax is 0 or infinite. Two passes over a tensor.
struct CurrentScaling {
  Fp8Format fp8_format = Fp8Format::hybrid;
  OperandCast cast_of(OperandRole role, Gemm gemm) const;
  friend bool operator==(const CurrentScaling&, const CurrentScaling&) = default;
};

/// E4M3 with a power of two per 1x128 numbers of x and dy, 128x128 of w: fp8_max / amax rounded down. wgrad reads x and
/// dy in blocks of 128 tokens (as arXiv 2412.19437 describes it).
struct BlockScaling {
  OperandCast cast_of(OperandRole role, Gemm gemm) const;
  friend bool operator==(const BlockScaling&, const BlockScaling&) = default;
};

/// 32 numbers along the contraction share an E8M0 scale_inv: amax / fp8_max rounded up (arXiv 2310.10537).
struct Mxfp8Scaling {
  Fp8Format fp8_format = Fp8Format::e4m3;
  OperandCast cast_of(OperandRole role, Gemm gemm) const;
  friend bool operator==(const Mxfp8Scaling&, const Mxfp8Scaling&) = default;
};

/// E2M1 in two levels (arXiv 2509.25149): an E4M3 scale_inv per 16 numbers along the contraction, 16x16 of a weight, and
/// an FP32 scale 6 * 448 / amax of the tensor.
struct Nvfp4Scaling {
  bool stochastic_rounding = true;  ///< of dy
  bool random_hadamard = true;      ///< of both operands of wgrad
  OperandCast cast_of(OperandRole role, Gemm gemm) const;
  friend bool operator==(const Nvfp4Scaling&, const Nvfp4Scaling&) = default;
};

/// A recipe of the program's own. `cast_of` is pure; casts that should be made once for two GEMMs must be equal (one rule object).
struct CustomScaling {
  using CastOf = std::function<OperandCast(OperandRole role, Gemm gemm)>;
  std::string name;  ///< for reports
  std::shared_ptr<const CastOf> function = nullptr;
  OperandCast cast_of(OperandRole role, Gemm gemm) const;
  friend bool operator==(const CustomScaling&, const CustomScaling&) = default;
};

/// The recipes there are. A module runs under the recipe of the innermost enabled Autocast scope.
using Recipe =
    std::variant<DelayedScaling, CurrentScaling, BlockScaling, Mxfp8Scaling, Nvfp4Scaling, CustomScaling>;

inline bool is_delayed(const Recipe& recipe) {
  return std::holds_alternative<DelayedScaling>(recipe);
}
/// How an operand is cast under a recipe other than DelayedScaling.
OperandCast cast_of(const Recipe& recipe, OperandRole role, Gemm gemm);

/// Element type of forward operands (inputs, weights) under delayed scaling.
DType forward_dtype(const DelayedScaling& recipe);
/// Element type of gradients under delayed scaling.
DType gradient_dtype(const DelayedScaling& recipe);

std::string_view name_of(Fp8Format format);
std::string_view name_of(AmaxCompute algo);
/// "delayed(hybrid, margin 0, history 1024, most_recent)", "mxfp8(e4m3)"
std::string describe(const Recipe& recipe);

}  // namespace quaver
