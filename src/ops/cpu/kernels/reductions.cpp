#include "ops/cpu/kernels/reductions.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// result = fold(result, x) down the columns of `kVectors` vectors at once: whole cache lines of every row.
template <int kVectors, typename T, typename Lanes, typename Fold>
[[gnu::always_inline]] inline void fold_columns(std::int64_t rows, ConstRows x, std::int64_t col,
                                                float* results, const T* type, Lanes lanes, Fold fold) {
  f32x16 totals[kVectors];
  for (f32x16& total : totals) total = f32s(0.0f);
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* from = row_of(x, row, type) + col;
    for (int v = 0; v < kVectors; ++v) totals[v] = fold(totals[v], load(from + v * kLanes, lanes));
  }
  for (int v = 0; v < kVectors; ++v) store(totals[v], results + col + v * kLanes, lanes);
}

template <typename T, typename Fold>
[[gnu::flatten]] void fold_rows(Extent extent, ConstRows x, float* results, const T* type, Fold fold) {
  constexpr int kVectors = kNativeLanes / 2;  // as many as the registers hold
  constexpr std::int64_t kColumns = kVectors * kLanes;
  std::int64_t done = 0;
  for (; done + kColumns <= extent.cols; done += kColumns) {
    fold_columns<kVectors>(extent.rows, x, done, results, type, Full{}, fold);
  }
  for_vectors(extent.cols - done, [&](std::int64_t col, auto lanes) {
    fold_columns<1>(extent.rows, x, done + col, results, type, lanes, fold);
  });
}

void sum_rows(Real real, Extent extent, ConstRows x, float* sums) {
  with_type(real, [&](auto* type) {
    fold_rows(extent, x, sums, type, [](f32x16 total, f32x16 value) { return total + value; });
  });
}

void column_amax(Real real, Extent extent, ConstRows x, float* amax) {
  with_type(real, [&](auto* type) {
    fold_rows(extent, x, amax, type, [](f32x16 largest, f32x16 value) {
      return max(float_of_bits(bits_of(value) & i32s(0x7FFFFFFF)), largest);  // largest where value is NaN
    });
  });
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
    .sum_rows = sum_rows,
    .column_amax = column_amax,
    .add_partials = add_partials,
    .sum_of_squares = sum_of_squares,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
