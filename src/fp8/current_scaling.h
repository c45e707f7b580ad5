/// The rule of current scaling, which every backend runs by two casts and one update of a scale (ops/quantize.cpp).
#pragma once

#include <memory>

#include "quaver/recipe.h"

namespace quaver {

const std::shared_ptr<const ScaleRule>& current_scale_rule();

}  // namespace quaver
