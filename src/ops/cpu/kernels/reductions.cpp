#include "ops/cpu/kernels/reductions.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Adds the columns of `kVectors` vectors at once: whole cache lines of every row.
template <int kVectors, typename T, typename Lanes>
[[gnu::always_inline]] inline void sum_columns(std::int64_t rows, ConstRows x, std::int64_t col, float* sums,
                                               const T* type, Lanes lanes) {
  f32x16 totals[kVectors];
  for (f32x16& total : totals) total = f32s(0.0f);
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* from = row_of(x, row, type) + col;
    for (int v = 0; v < kVectors; ++v) totals[v] += load(from + v * kLanes, lanes);
  }
  for (int v = 0; v < kVectors; ++v) store(totals[v], sums + col + v * kLanes, lanes);
}

template <typename T>
[[gnu::flatten]] void sum_rows_of(Extent extent, ConstRows x, float* sums, const T* type) {
  constexpr int kVectors = kNativeLanes / 2;  // as many as the registers hold
  constexpr std::int64_t kColumns = kVectors * kLanes;
  std::int64_t done = 0;
  for (; done + kColumns <= extent.cols; done += kColumns) {
    sum_columns<kVectors>(extent.rows, x, done, sums, type, Full{});
  }
  for_vectors(extent.cols - done, [&](std::int64_t col, auto lanes) {
    sum_columns<1>(extent.rows, x, done + col, sums, type, lanes);
  });
}

void sum_rows(Real real, Extent extent, ConstRows x, float* sums) {
  with_type(real, [&](auto* type) { sum_rows_of(extent, x, sums, type); });
}

[[gnu::flatten]] void add_partials(std::int64_t count, const float* partials, std::int64_t stride,
                                   std::int64_t columns, float* sums) {
  for_vectors(columns, [&](std::int64_t col, auto lanes) {
    f32x16 total = f32s(0.0f);
    for (std::int64_t p = 0; p < count; ++p) total += load(partials + p * stride + col, lanes);
    store(load(sums + col, lanes) + total, sums + col, lanes);
  });
}

double sum_of_squares(const float* x, std::int64_t count) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += static_cast<double>(x[i]) * x[i];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace

extern const ReductionKernels reduction_kernels;
const ReductionKernels reduction_kernels = {
    .sum_rows = sum_rows, .add_partials = add_partials, .sum_of_squares = sum_of_squares};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
