#include "quaver/recipe.h"

#include "base/check.h"

namespace quaver {

DType forward_dtype(const Recipe&) {
  return DType::e4m3;
}

DType gradient_dtype(const Recipe& recipe) {
  return std::get<DelayedScaling>(recipe).fp8_format == Fp8Format::hybrid ? DType::e5m2 : DType::e4m3;
}

std::string_view name_of(Fp8Format format) {
  return format == Fp8Format::hybrid ? "hybrid" : "e4m3";
}

std::string_view name_of(AmaxCompute algo) {
  return algo == AmaxCompute::max ? "max" : "most_recent";
}

std::string describe(const Recipe& recipe) {
  const auto& delayed = std::get<DelayedScaling>(recipe);
  return fmt::format("delayed({}, margin {}, history {}, {})", name_of(delayed.fp8_format), delayed.margin,
                     delayed.amax_history_len, name_of(delayed.amax_compute_algo));
}

}  // namespace quaver
