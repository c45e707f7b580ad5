/// Rotary position tables (arXiv 2104.09864).
#pragma once

#include <cstdint>

#include "quaver/backend.h"

namespace quaver {

/// Cosines and sines of position * theta^(-2j/R) for j < R/2, computed in double, rounded to f32 once. R =
/// fraction * head_dim, rounded down to an even number.
class Rotary {
 public:
  Rotary(Backend& backend, std::int64_t positions, std::int64_t head_dim, float theta, float fraction);
  const Tensor& cosine() const { return cosine_; }  ///< f32[positions, R/2]
  const Tensor& sine() const { return sine_; }

 private:
  Tensor cosine_, sine_;
};

}  // namespace quaver
