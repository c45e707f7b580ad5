/// The rule of `Backend::column_scales`, from the largest magnitudes of the columns.
#pragma once

#include <span>

namespace quaver {

/// All of one length.
void choose_column_scales(std::span<const float> amax, std::span<float> scale, std::span<float> inverse);

}  // namespace quaver
