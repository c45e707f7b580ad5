#include "quaver/recipe.h"

#include "base/check.h"

namespace quaver {

OperandCast CustomScaling::cast_of(OperandRole role, Gemm gemm) const {
  require(function != nullptr, "recipe \"{}\": is only a name (read from a stored state); it cannot cast",
          name);
  OperandCast cast = (*function)(role, gemm);
  require(is_quantized(cast.format),
          "recipe \"{}\": {} of {} is to be cast to {}, expected e4m3, e5m2 or e2m1", name, name_of(role),
          name_of(gemm), name_of(cast.format));
  require(cast.rule != nullptr, "recipe \"{}\": {} of {} has no ScaleRule", name, name_of(role),
          name_of(gemm));
  require(cast.block_rows >= 0 && cast.block_cols >= 0 && (cast.block_rows > 0) == (cast.block_cols > 0),
          "recipe \"{}\": {} of {} in blocks of {} x {}, expected two positive numbers, or 0 x 0 for the "
          "whole tensor",
          name, name_of(role), name_of(gemm), cast.block_rows, cast.block_cols);
  return cast;
}

OperandCast cast_of(const Recipe& recipe, OperandRole role, Gemm gemm) {
  return std::visit(
      [&](const auto& r) -> OperandCast {
        if constexpr (requires { r.cast_of(role, gemm); }) {
          return r.cast_of(role, gemm);
        } else {
          fail(ErrorKind::usage,
               "recipe: delayed scaling casts with scales of earlier steps, not by the tensor");
        }
      },
      recipe);
}

float ScaleRule::tensor_scale(float, float) const {
  return 1;
}

float ScaleRule::block_scale_inv(float, float, float) const {
  return 1;
}

std::string_view name_of(OperandRole role) {
  switch (role) {
    case OperandRole::input:
      return "input";
    case OperandRole::weight:
      return "weight";
    case OperandRole::grad_output:
      return "grad_output";
  }
  return "unknown";
}

std::array<OperandRole, 2> operands_of(Gemm kind) {
  switch (kind) {
    case Gemm::fprop:
      return {OperandRole::input, OperandRole::weight};
    case Gemm::dgrad:
      return {OperandRole::grad_output, OperandRole::weight};
    case Gemm::wgrad:
      return {OperandRole::grad_output, OperandRole::input};
  }
  return {};
}

std::string_view name_of(Gemm kind) {
  switch (kind) {
    case Gemm::fprop:
      return "fprop";
    case Gemm::dgrad:
      return "dgrad";
    case Gemm::wgrad:
      return "wgrad";
  }
  return "unknown";
}

DType forward_dtype(const DelayedScaling&) {
  return DType::e4m3;
}

DType gradient_dtype(const DelayedScaling& recipe) {
  return recipe.fp8_format == Fp8Format::hybrid ? DType::e5m2 : DType::e4m3;
}

std::string_view name_of(Fp8Format format) {
  return format == Fp8Format::hybrid ? "hybrid" : "e4m3";
}

std::string_view name_of(AmaxCompute algo) {
  switch (algo) {
    case AmaxCompute::max:
      return "max";
    case AmaxCompute::most_recent:
      return "most_recent";
    case AmaxCompute::custom:
      return "custom";
  }
  return "unknown";
}

namespace {

std::string description_of(const DelayedScaling& delayed) {
  return fmt::format("delayed({}, margin {}, history {}, {})", name_of(delayed.fp8_format), delayed.margin,
                     delayed.amax_history_len, name_of(delayed.amax_compute_algo));
}
std::string description_of(const CurrentScaling& current) {
  return fmt::format("current({})", name_of(current.fp8_format));
}
std::string description_of(const BlockScaling&) {
  return "block";
}
std::string description_of(const Mxfp8Scaling& mxfp8) {
  return fmt::format("mxfp8({})", name_of(mxfp8.fp8_format));
}
std::string description_of(const Nvfp4Scaling& nvfp4) {
  return fmt::format("nvfp4({}, {})", nvfp4.stochastic_rounding ? "stochastic" : "to nearest",
                     nvfp4.random_hadamard ? "hadamard" : "plain");
}
std::string description_of(const CustomScaling& custom) {
  return custom.name;
}

}  // namespace

std::string describe(const Recipe& recipe) {
  return std::visit([](const auto& r) { return description_of(r); }, recipe);
}

}  // namespace quaver
