/// The recipes that run files can name. A new one is a struct of recipe.h, its file in src/fp8, and a line here.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quaver/recipe.h"
#include "train/run_config.h"

namespace quaver {

struct NamedRecipe {
  const char* name;
  Recipe (*make)(const Fp8Config& fp8);
};
std::span<const NamedRecipe> named_recipes();
std::vector<std::string> recipe_names();

/// The recipe of that name with the parameters of [fp8].
Recipe make_recipe(std::string_view name, const Fp8Config& fp8);

}  // namespace quaver
