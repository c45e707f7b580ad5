#include "nn/rotary.h"

#include <cmath>
#include <vector>

namespace quaver {

Rotary::Rotary(Backend& backend, std::int64_t positions, std::int64_t head_dim, float theta, float fraction) {
  const std::int64_t pairs = static_cast<std::int64_t>(fraction * static_cast<float>(head_dim)) / 2;
  if (pairs == 0) return;
  std::vector<float> cosine(positions * pairs), sine(positions * pairs);
  for (std::int64_t j = 0; j < pairs; ++j) {
    const double frequency =
        std::pow(static_cast<double>(theta), -static_cast<double>(j) / static_cast<double>(pairs));
    for (std::int64_t position = 0; position < positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      cosine[position * pairs + j] = static_cast<float>(std::cos(angle));
      sine[position * pairs + j] = static_cast<float>(std::sin(angle));
    }
  }
  cosine_ = upload(backend, cosine, {positions, pairs});
  sine_ = upload(backend, sine, {positions, pairs});
}

}  // namespace quaver
