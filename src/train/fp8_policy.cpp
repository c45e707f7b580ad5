#include "train/fp8_policy.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "base/glob.h"
#include "base/random.h"
#include "base/suggest.h"
#include "quaver/linear.h"
#include "train/fp8_recipes.h"
#include "train/fp8_state.h"

namespace quaver {
namespace {

/// Keeps the first reason: later ones change nothing.
void keep_out(GemmPolicy& gemm, const std::string& why) {
  if (gemm.fp8) gemm = {false, why};
}

/// 7 of "blocks.7.mlp.up_proj"; -1 outside the blocks.
std::int64_t block_of(std::string_view name) {
  constexpr std::string_view kPrefix = "blocks.";
  std::int64_t block = -1;
  if (name.starts_with(kPrefix))
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), block);
  return block;
}

std::string reason_of(const Fp8Override& override) {
  return override.why.empty() ? fmt::format("fp8.override of \"{}\"", override.match) : override.why;
}

void require_match(const Fp8Override& override, const std::vector<NamedLinear>& linears) {
  std::vector<std::string> names;
  for (const NamedLinear& linear : linears) {
    if (glob_matches(override.match, linear.name)) return;
    names.push_back(linear.name);
  }
  const std::string nearest = nearest_name(override.match, names);
  fail(ErrorKind::usage, "fp8.override: match = \"{}\" matches no module; {}", override.match,
       nearest.empty() ? fmt::format("the modules are {}", fmt::join(names, ", "))
                       : fmt::format("did you mean \"{}\"?", nearest));
}

}  // namespace

std::vector<NamedLinear> linears_of(Module& module) {
  struct Collector : ModuleVisitor {
    void linear(const std::string& name, Linear& linear) override { all.push_back({name, &linear}); }
    std::vector<NamedLinear> all;
  } collector;
  module.visit("", collector);
  return std::move(collector.all);
}

namespace {

void apply(const Fp8Override& override, const Fp8Config& fp8, std::size_t gemm, GemmPolicy& policy) {
  if (override.recipe != kBf16) {
    policy = {};
    if (override.recipe != fp8.recipe) policy.recipe = make_recipe(override.recipe, fp8);
    return;
  }
  const std::array<OperandRole, 2> roles = operands_of(static_cast<Gemm>(gemm));
  for (const OperandRole role : roles) {
    const auto index = static_cast<std::size_t>(role);
    policy.real_operands[index] = policy.real_operands[index] || override.operands[index];
  }
  const auto is_real = [&](OperandRole role) { return policy.real_operands[static_cast<std::size_t>(role)]; };
  if (!std::all_of(roles.begin(), roles.end(), is_real)) return;
  policy.real_operands = {};
  keep_out(policy, reason_of(override));
}

/// Smooth-SwiGLU where it is asked for; an error where it could have no effect at all.
void smooth_down_proj(const std::vector<NamedLinear>& linears, const Fp8Config& fp8) {
  const Recipe recipe = fp8.make_recipe();
  bool is_product = false, casts = false, smooths = false;
  for (const auto& [name, linear] : linears) {
    is_product = is_product || name.ends_with("mlp.gate_proj") || name.ends_with("mlp.gate_up_proj");
    if (!name.ends_with("mlp.down_proj")) continue;
    linear->smooth_input(fp8.smooth_swiglu);
    casts = casts || linear->policy()[0].fp8 || linear->policy()[2].fp8;
    smooths = smooths || linear->smooths_under(recipe);
  }
  if (!fp8.smooth_swiglu) return;
  require(is_product,
          "fp8.smooth_swiglu: the input of down_proj is no product of two projections. Hint: model.mlp = "
          "\"swiglu\" or \"geglu\"");
  require(smooths || !casts,
          "fp8.smooth_swiglu: expected fp8.recipe = \"delayed\" or \"current\" for a down_proj, whose one "
          "scale a large channel takes up; found \"{}\", whose blocks have scales of their own",
          fp8.recipe);
}

}  // namespace

GemmPolicies fp8_policy_of(const std::string& name, const Fp8Config& fp8, std::int64_t layers) {
  GemmPolicies policies;
  const std::int64_t block = block_of(name);
  const bool at_an_end = block >= 0 && (block < fp8.bf16_end_layers || block >= layers - fp8.bf16_end_layers);
  for (GemmPolicy& gemm : policies) {
    if (name == "lm_head" && !fp8.lm_head) keep_out(gemm, "fp8.lm_head = false");
    if (at_an_end) keep_out(gemm, fmt::format("fp8.bf16_end_layers = {}", fp8.bf16_end_layers));
  }
  for (const Fp8Override& override : fp8.overrides) {
    if (!glob_matches(override.match, name)) continue;
    for (std::size_t i = 0; i < policies.size(); ++i) {
      if (override.gemms[i]) apply(override, fp8, i, policies[i]);
    }
  }
  return policies;
}

void apply_fp8_policy(Module& model, const Fp8Config& fp8, std::int64_t layers) {
  require(fp8.bf16_end_layers == 0 || 2 * fp8.bf16_end_layers < layers,
          "fp8.bf16_end_layers: {} at each end leave none of {} blocks in FP8; expected less than {}, or "
          "precision = "
          "\"bf16\"",
          fp8.bf16_end_layers, layers, (layers + 1) / 2);
  const std::vector<NamedLinear> linears = linears_of(model);
  for (const Fp8Override& override : fp8.overrides) require_match(override, linears);
  for (const auto& [name, linear] : linears) {
    linear->set_policy(fp8_policy_of(name, fp8, layers));
    linear->set_noise_stream(stable_hash(name));
  }
  smooth_down_proj(linears, fp8);
}

void require_recipes(Module& model, const std::optional<Recipe>& recipe) {
  for (const NamedLinear& linear : linears_of(model)) linear.linear->require_recipes(recipe);
}

void require_strict_fp8(Module& model) {
  for (const auto& [name, linear] : linears_of(model)) {
    for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
      const GemmRecord& gemm = linear->fp8().gemms[i];
      if (!linear->policy()[i].fp8 || (gemm.fp8_runs > 0 && gemm.other_runs == 0)) continue;
      fail(ErrorKind::failure, "--strict-fp8: {} {} ran {} times in FP8 and {} times not{}", name,
           kGemmNames[i], gemm.fp8_runs, gemm.other_runs,
           gemm.other_runs > 0 ? fmt::format(" ({} x {})", name_of(gemm.a), name_of(gemm.b)) : "");
    }
  }
}

}  // namespace quaver
