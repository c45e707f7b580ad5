#include "ops/cpu/kernels/norms.h"

#include "ops/cpu/kernels/norm_rows.h"
#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <typename T>
[[gnu::always_inline]] inline float mean_of(const T* x, std::int64_t count) {
  RowSum sum;
  for_blocks<4>(
      count, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) { sum.add(load(x + i, lanes)); });
  return sum.total() / static_cast<float>(count);
}

/// The row to be normalised; forms the sum, whose row stays in the nearest cache.
template <typename T>
[[gnu::always_inline]] inline const T* summed_row(const NormForward& norm, std::int64_t row,
                                                  std::int64_t count, const T* type) {
  const T* x = row_of(norm.x, row, type);
  if (norm.addend.data == nullptr) return x;
  const T* addend = row_of(norm.addend, row, type);
  T* to = row_of(norm.sum, row, type);
  for_vectors(
      count, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
        store(load(x + col, lanes) + load(addend + col, lanes), to + col, lanes);
      });
  return to;
}

template <bool kLayerNorm, typename T>
[[gnu::flatten]] void forward_rows(Extent extent, const NormForward& norm, const ProducerRows& y,
                                   const T* type) {
  Producer<T> producer(y);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* x = summed_row(norm, row, extent.cols, type);
    const float mean = kLayerNorm ? mean_of(x, extent.cols) : 0.0f;
    const float rstd = inverse_root_mean(sum_of_squares(x, mean, extent.cols), extent.cols, norm.epsilon);
    if (norm.mean != nullptr) norm.mean[row] = mean;
    if (norm.rstd != nullptr) norm.rstd[row] = rstd;
    producer.store_row(
        row, 0, extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
          auto result = load(x + col, lanes);
          if constexpr (kLayerNorm) result = result - mean;
          result = (result * rstd) * load(norm.gain + col, lanes);
          if constexpr (kLayerNorm) result = result + load(norm.bias + col, lanes);
          return result;
        });
  }
  producer.finish();
}

void forward(Real real, Extent extent, const NormForward& norm, const ProducerRows& y) {
  with_type(real, [&](auto* type) {
    norm.bias != nullptr ? forward_rows<true>(extent, norm, y, type)
                         : forward_rows<false>(extent, norm, y, type);
  });
}

template <bool kLayerNorm, typename T>
[[gnu::flatten]] void backward_rows(Extent extent, const NormBackward& norm, const T* type) {
  for (std::int64_t col = 0; col < extent.cols; ++col) norm.dgain[col] = 0.0f;
  for (std::int64_t col = 0; kLayerNorm && col < extent.cols; ++col) norm.dbias[col] = 0.0f;
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* dy = row_of(norm.dy, row, type);
    const T* x = row_of(norm.x, row, type);
    T* dx = row_of(norm.dx, row, type);
    const float mean = kLayerNorm ? norm.mean[row] : 0.0f;
    const float rstd = norm.rstd[row];
    const GradientMeans means = gradient_means(dy, x, norm.gain, mean, rstd, extent.cols);
    for_vectors(
        extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
          const f32x16 d = load(dy + col, lanes);
          const f32x16 xhat = (load(x + col, lanes) - mean) * rstd;
          store(load(norm.dgain + col, lanes) + d * xhat, norm.dgain + col, lanes);
          f32x16 inner = d * load(norm.gain + col, lanes) - means.normalised * xhat;
          if constexpr (kLayerNorm) {
            store(load(norm.dbias + col, lanes) + d, norm.dbias + col, lanes);
            inner = inner - means.plain;
          }
          f32x16 result = rstd * inner;
          if (norm.accumulate_dx) result = load(dx + col, lanes) + result;
          store(result, dx + col, lanes);
        });
  }
}

void backward(Real real, Extent extent, const NormBackward& norm) {
  with_type(real, [&](auto* type) {
    norm.mean != nullptr ? backward_rows<true>(extent, norm, type) : backward_rows<false>(extent, norm, type);
  });
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {.forward = forward, .backward = backward};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
