#include "ops/column_scales.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

/// Beyond, a scale or its inverse could bring usual numbers out of BF16's range.
constexpr int kLargestExponent = 32;
/// Twice the spread of the scales: what E4M3 holds beside the numbers of a column (docs/numerics.md).
constexpr int kWidestSpread = 20;

std::optional<int> exponent_of(float amax) {
  if (!(amax > 0) || !std::isfinite(amax)) return std::nullopt;
  return std::ilogb(amax);
}

[[noreturn]] void refuse(const char* operation, const Backend& backend) {
  fail(ErrorKind::usage,
       "{}: the backend {} does not have it. Hint: the backends cpu and reference do; or "
       "fp8.smooth_swiglu = false",
       operation, backend.name());
}

}  // namespace

void choose_column_scales(std::span<const float> amax, std::span<float> scale, std::span<float> inverse) {
  std::optional<int> found;
  for (const float column : amax) {
    if (const auto exponent = exponent_of(column)) found = std::max(found.value_or(*exponent), *exponent);
  }
  const int largest = std::clamp(found.value_or(0), -kLargestExponent, kLargestExponent);
  for (std::size_t n = 0; n < amax.size(); ++n) {
    const int own = std::clamp(exponent_of(amax[n]).value_or(largest), largest - kWidestSpread, largest);
    const int exponent = (own + largest) >> 1;  // rounds down, negative ones too
    scale[n] = std::ldexp(1.0f, exponent);
    inverse[n] = std::ldexp(1.0f, -exponent);
  }
}

void Backend::column_scales(const Tensor&, const Tensor&, const Tensor&) {
  refuse("column_scales", *this);
}

void Backend::scale_columns(const Tensor&, const Tensor&, const Tensor&) {
  refuse("scale_columns", *this);
}

}  // namespace quaver
