/// What `precision` and [fp8] of a run file mean for the modules.
#pragma once

#include <optional>

#include "quaver/recipe.h"
#include "train/run_config.h"

namespace quaver {

/// The type of activations, and of GEMM operands outside FP8: the Context's high precision.
inline DType activation_dtype(Precision precision) {
  return precision == Precision::fp32 ? DType::f32 : DType::bf16;
}

/// The type of optimizer state.
inline DType stored_dtype(StateFormat format) {
  switch (format) {
    case StateFormat::f32:
      return DType::f32;
    case StateFormat::bf16:
      return DType::bf16;
    case StateFormat::fp8:
      return DType::e4m3;
  }
  return DType::f32;
}

/// The recipe of the run's Autocast scopes; nothing when it does not run in FP8.
inline std::optional<Recipe> run_recipe(const RunConfig& config) {
  if (config.precision != Precision::fp8) return std::nullopt;
  return config.fp8.make_recipe();
}

}  // namespace quaver
