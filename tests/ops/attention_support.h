/// What tests of attention share.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace quaver::testing {

/// max |found - expected| over the largest |expected|, at least `least`: the size of the terms, where a result may consist of
/// rounding errors alone. NaN in either shows.
inline float relative_error(const std::vector<float>& found, const std::vector<float>& expected,
                            float least = 1) {
  float error = 0, largest = least;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float difference = std::fabs(found[i] - expected[i]);
    if (!(difference <= error)) error = difference;  // NaN stays
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return error / largest;
}

}  // namespace quaver::testing
