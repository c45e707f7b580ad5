/// Recipes: how scales of FP8 tensors are chosen.
#pragma once

#include <string_view>
#include <variant>

#include "quaver/tensor.h"

namespace quaver {

/// hybrid: e4m3 in the forward pass, e5m2 for gradients. e4m3: both passes e4m3.
enum class Fp8Format { hybrid, e4m3 };

/// Which amax of the history window sets the next scale.
enum class AmaxCompute { max, most_recent };

/// One scale per tensor, from the amaxes of earlier steps: scale = fp8_max * 2^-margin / amax. The rule of
/// one update is documented at `ScaleUpdater`.
struct DelayedScaling {
  int margin = 0;
  Fp8Format fp8_format = Fp8Format::hybrid;
  int amax_history_len = 1024;
  AmaxCompute amax_compute_algo = AmaxCompute::most_recent;
  /// Take the maximum of amaxes over all ranks before an update (one process has one rank).
  bool reduce_amax = true;
};

/// The recipes there are. A module runs under the recipe of the innermost enabled Autocast scope.
using Recipe = std::variant<DelayedScaling>;

/// Element type of forward operands (inputs, weights) under `recipe`.
DType forward_dtype(const Recipe& recipe);
/// Element type of gradients under `recipe`.
DType gradient_dtype(const Recipe& recipe);

std::string_view name_of(Fp8Format format);
std::string_view name_of(AmaxCompute algo);
/// "delayed(hybrid, margin 0, history 1024, most_recent)"
std::string describe(const Recipe& recipe);

}  // namespace quaver
