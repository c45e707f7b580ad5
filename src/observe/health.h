/// The health of FP8 in a run: plain advice with the numbers behind it. Every rule is a function of what one tensor's
/// slot holds.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "observe/exponent_histogram.h"
#include "quaver/recipe.h"
#include "quaver/tensor.h"

namespace quaver {

/// Running totals of a slot's casts (CastCounter).
struct CastTotals {
  std::int64_t cast = 0, saturated = 0, underflowed = 0, nan = 0, infinite = 0, zeros = 0;
  friend bool operator==(const CastTotals&, const CastTotals&) = default;
};

/// One tensor that is cast to FP8: an input, weight or output gradient of a module.
struct CastTensor {
  std::string name;  ///< "blocks.0.mlp.up_proj.input"
  DType format = DType::e4m3;
  AmaxCompute algo = AmaxCompute::most_recent;
  int margin = 0;
  float scale = 1;
  std::vector<float> amax_history;  ///< as in ScalingSlot; empty: the recipe keeps none
  CastTotals totals;
  std::optional<ExponentHistogram> exponents;  ///< of the newest step in which they were counted
};

/// What is wrong with one tensor, and what to do.
struct Advice {
  std::string tensor;
  std::string rule;  ///< "saturates", "underflows", …: the names of the functions below
  std::string text;
  friend bool operator==(const Advice&, const Advice&) = default;
};

/// NaN or infinities were cast.
std::optional<Advice> not_finite(const CastTensor& tensor);
/// More than 0.1% of the numbers saturate.
std::optional<Advice> saturates(const CastTensor& tensor);
/// More than 1% of the numbers that are not zero became zero. Says whether E5M2 or another scale would help, if
/// exponents were counted.
std::optional<Advice> underflows(const CastTensor& tensor);
/// More than 5% would underflow even under the best scale of either format: no recipe with one scale a tensor will do.
std::optional<Advice> wants_bf16(const CastTensor& tensor);
/// `max`: the scale follows an amax that nothing came near for at least half of the history.
std::optional<Advice> stale_history(const CastTensor& tensor);
/// The newest amaxes rose by a quarter or more, and beyond the margin, in each of the last k >= 2 updates: every cast in
/// that time met numbers above what its scale was made for.
std::optional<Advice> lags(const CastTensor& tensor);

/// All rules over all tensors, in that order.
std::vector<Advice> advise(std::span<const CastTensor> tensors);

}  // namespace quaver
