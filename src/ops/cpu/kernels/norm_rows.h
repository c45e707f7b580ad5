/// What norms over whole rows and over heads share. For kernel files only.
#pragma once

#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// A sum over a row: four running sums, and one of the columns that are left. All levels add in this order.
class RowSum {
 public:
  [[gnu::always_inline]] void add(F32<4> terms) { blocks_ += terms; }
  [[gnu::always_inline]] void add(f32x16 terms) { rest_ += terms; }
  [[gnu::always_inline]] f32x16 vector() const { return add_each(rest_, blocks_); }
  [[gnu::always_inline]] float total() const { return sum(vector()); }

 private:
  F32<4> blocks_ = f32s<4>(0.0f);
  f32x16 rest_ = f32s(0.0f);
};

/// sum (x - mean)^2, the padding of a tail not counted.
template <typename T>
[[gnu::always_inline]] inline float sum_of_squares(const T* x, float mean, std::int64_t count) {
  RowSum squares;
  for_blocks<4>(
      count, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const auto centred = pad(load(x + i, lanes) - mean, lanes, 0.0f);
        squares.add(centred * centred);
      });
  return squares.total();
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
template <typename Gradient, typename T>
[[gnu::always_inline]] inline GradientMeans gradient_means(const Gradient* dy, const T* x, const float* gain,
                                                           float mean, float rstd, std::int64_t count) {
  RowSum plain, normalised;
  for_blocks<4>(
      count, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const auto d = load(dy + i, lanes) * load(gain + i, lanes);
        plain.add(d);
        normalised.add(d * ((load(x + i, lanes) - mean) * rstd));
      });
  const float n = static_cast<float>(count);
  return {plain.total() / n, normalised.total() / n};
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
