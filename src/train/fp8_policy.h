/// From [fp8] of a run file to the policy of every module's GEMMs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "quaver/gemm_policy.h"
#include "quaver/module.h"
#include "train/run_config.h"

namespace quaver {

/// A Linear and its name in the model.
struct NamedLinear {
  std::string name;
  Linear* linear = nullptr;
};
std::vector<NamedLinear> linears_of(Module& module);

/// The policy of the Linear `name` in a model of `layers` blocks: fp8.lm_head and fp8.bf16_end_layers first, then every
/// [[fp8.override]] that matches, in turn.
GemmPolicies fp8_policy_of(const std::string& name, const Fp8Config& fp8, std::int64_t layers);

/// Sets the policies of all Linears, and their streams of random numbers by their names. Throws Error(usage) when an override matches none of them, or fp8.bf16_end_layers
/// leaves no block.
void apply_fp8_policy(Module& model, const Fp8Config& fp8, std::int64_t layers);

/// Throws Error(usage) if the backend does not run what some product of a module follows in a scope of `recipe`.
void require_recipes(Module& model, const std::optional<Recipe>& recipe);

/// Throws Error(failure), naming module and GEMM, if one that its policy puts in FP8 did not run so every time.
void require_strict_fp8(Module& model);

}  // namespace quaver
