#include "train/fp8_recipes.h"

#include <fmt/ranges.h>

#include <array>

#include "base/check.h"

namespace quaver {
namespace {

Recipe make_delayed(const Fp8Config& fp8) {
  DelayedScaling delayed;
  delayed.margin = fp8.margin;
  delayed.fp8_format = fp8.format;
  delayed.amax_history_len = fp8.amax_history_len;
  delayed.amax_compute_algo = fp8.amax_compute_algo;
  return delayed;
}

constexpr std::array kRecipes = {
    NamedRecipe{"delayed", make_delayed},
    NamedRecipe{"current", [](const Fp8Config& fp8) -> Recipe { return CurrentScaling{fp8.format}; }},
    NamedRecipe{"block", [](const Fp8Config&) -> Recipe { return BlockScaling{}; }},
    NamedRecipe{"mxfp8", [](const Fp8Config& fp8) -> Recipe { return Mxfp8Scaling{fp8.mxfp8_format}; }},
    NamedRecipe{"nvfp4", [](const Fp8Config&) -> Recipe { return Nvfp4Scaling{}; }},
};

}  // namespace

std::span<const NamedRecipe> named_recipes() {
  return kRecipes;
}

std::vector<std::string> recipe_names() {
  std::vector<std::string> names;
  for (const NamedRecipe& recipe : kRecipes) names.emplace_back(recipe.name);
  return names;
}

Recipe make_recipe(std::string_view name, const Fp8Config& fp8) {
  for (const NamedRecipe& recipe : kRecipes) {
    if (recipe.name == name) return recipe.make(fp8);
  }
  fail(ErrorKind::usage, "fp8.recipe: \"{}\" is none of {}", name, fmt::join(recipe_names(), ", "));
}

}  // namespace quaver
