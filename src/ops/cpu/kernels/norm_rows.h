/// What norms over whole rows and over heads share. For kernel files only.
#pragma once

#include "ops/cpu/kernels/simd.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// sum (x - mean)^2, the padding of a tail not counted.
template <typename T>
[[gnu::always_inline]] inline float sum_of_squares(const T* x, float mean, std::int64_t count) {
  f32x16 squares = f32s(0.0f);
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    const f32x16 centred = pad(load(x + i, lanes) - mean, lanes, 0.0f);
    squares += centred * centred;
  });
  return sum(squares);
}

[[gnu::always_inline]] inline float inverse_root_mean(float sum_of_squares, std::int64_t count,
                                                      float epsilon) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(count) + epsilon);
}

struct GradientMeans {
  float plain;       ///< mean(dy * gain)
  float normalised;  ///< mean(dy * gain * xhat)
};

/// The two means that a norm's backward subtracts, xhat = (x - mean) * rstd.
template <typename T>
[[gnu::always_inline]] inline GradientMeans gradient_means(const T* dy, const T* x, const float* gain,
                                                           float mean, float rstd, std::int64_t count) {
  f32x16 plain = f32s(0.0f), normalised = f32s(0.0f);
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    const f32x16 d = load(dy + i, lanes) * load(gain + i, lanes);
    plain += d;
    normalised += d * ((load(x + i, lanes) - mean) * rstd);
  });
  const float n = static_cast<float>(count);
  return {sum(plain) / n, sum(normalised) / n};
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
