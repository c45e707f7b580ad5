#include "ops/column_scales.h"

#include <algorithm>

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

[[noreturn]] void refuse(const char* operation, const Backend& backend) {
  fail(ErrorKind::usage,
       "{}: the backend {} does not have it. Hint: "
       "fp8.smooth_swiglu = false",
       operation, backend.name());
}

}  // namespace

void choose_column_scales(std::span<const float> amax, std::span<float> scale, std::span<float> inverse) {
  float largest_amax = 0;
  for (const float column : amax) {
    if (is_telling(column)) largest_amax = std::max(largest_amax, column);
  }
  const int largest = largest_column_exponent(largest_amax);
  for (std::size_t n = 0; n < amax.size(); ++n) {
    const int exponent = column_scale_exponent(amax[n], largest);
    scale[n] = power_of_two(exponent);
    inverse[n] = power_of_two(-exponent);
  }
}

void Backend::column_scales(const Tensor&, const Tensor&, const Tensor&) {
  refuse("column_scales", *this);
}

void Backend::scale_columns(const Tensor&, const Tensor&, const Tensor&) {
  refuse("scale_columns", *this);
}

}  // namespace quaver
