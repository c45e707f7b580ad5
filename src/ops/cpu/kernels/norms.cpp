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

/// Rows whose statistics are found before the first of them is stored: a sum, a root and a division wait for each other, but not
/// for those of other rows.
constexpr std::int64_t kRowsAtOnce = 4;

template <bool kLayerNorm, typename T>
[[gnu::flatten]] void forward_rows(Extent extent, const NormForward& norm, const ProducerRows& y,
                                   const T* type) {
  Producer<T> producer(y);
  for (std::int64_t begin = 0; begin < extent.rows; begin += kRowsAtOnce) {
    const std::int64_t rows = extent.rows - begin < kRowsAtOnce ? extent.rows - begin : kRowsAtOnce;
    const T* x[kRowsAtOnce];
    float mean[kRowsAtOnce] = {}, rstd[kRowsAtOnce];
    for (std::int64_t i = 0; i < rows; ++i) {
      x[i] = summed_row(norm, begin + i, extent.cols, type);
      if constexpr (kLayerNorm) mean[i] = mean_of(x[i], extent.cols);
    }
    for (std::int64_t i = 0; i < rows; ++i)
      rstd[i] = inverse_root_mean(sum_of_squares(x[i], kLayerNorm ? mean[i] : 0.0f, extent.cols), extent.cols,
                                  norm.epsilon);
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t row = begin + i;
      if (norm.mean != nullptr) norm.mean[row] = mean[i];
      if (norm.rstd != nullptr) norm.rstd[row] = rstd[i];
      producer.store_row(
          row, 0, extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
            fetch_ahead(x[i] + col, lanes);
            auto result = load(x[i] + col, lanes);
            if constexpr (kLayerNorm) result = result - mean[i];
            result = (result * rstd[i]) * load(norm.gain + col, lanes);
            if constexpr (kLayerNorm) result = result + load(norm.bias + col, lanes);
            return result;
          });
    }
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
[[gnu::flatten]] void backward_rows(Extent extent, const NormBackward& norm, const ProducerRows& dx,
                                    const T* type) {
  Producer<T> producer(dx);
  for (std::int64_t col = 0; col < extent.cols; ++col) norm.dgain[col] = 0.0f;
  for (std::int64_t col = 0; kLayerNorm && col < extent.cols; ++col) norm.dbias[col] = 0.0f;
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* dy = row_of(norm.dy, row, type);
    const T* x = row_of(norm.x, row, type);
    const T* old = row_of(ConstRows{dx.values, dx.values_stride}, row, type);
    const float mean = kLayerNorm ? norm.mean[row] : 0.0f;
    const float rstd = norm.rstd[row];
    const GradientMeans means = gradient_means(dy, x, norm.gain, mean, rstd, extent.cols);
    producer.store_row(
        row, 0, extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
          const auto d = load(dy + col, lanes);
          const auto xhat = (load(x + col, lanes) - mean) * rstd;
          store(load(norm.dgain + col, lanes) + d * xhat, norm.dgain + col, lanes);
          auto inner = d * load(norm.gain + col, lanes) - means.normalised * xhat;
          if constexpr (kLayerNorm) {
            store(load(norm.dbias + col, lanes) + d, norm.dbias + col, lanes);
            inner = inner - means.plain;
          }
          const auto result = rstd * inner;
          return norm.accumulate_dx ? load(old + col, lanes) + result : result;
        });
  }
  producer.finish();
}

void backward(Real real, Extent extent, const NormBackward& norm, const ProducerRows& dx) {
  with_type(real, [&](auto* type) {
    norm.mean != nullptr ? backward_rows<true>(extent, norm, dx, type)
                         : backward_rows<false>(extent, norm, dx, type);
  });
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {.forward = forward, .backward = backward};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
