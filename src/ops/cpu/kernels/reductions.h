/// Sums and maxima over rows, sums over tensors.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

struct ReductionKernels {
  /// sums[n] = sum over these rows, ascending.
  void (*sum_rows)(Real real, Extent extent, ConstRows x, float* sums);
  /// amax[n] = max over these rows of |x[m][n]|; NaN ignored.
  void (*column_amax)(Real real, Extent extent, ConstRows x, float* amax);
  /// sums[n] += partials[0][n] + partials[1][n] + ..., ascending; partial p starts at partials + p * stride.
  void (*add_partials)(std::int64_t count, const float* partials, std::int64_t stride, std::int64_t columns,
                       float* sums);
  /// In double, every product exact: 16 running sums (element i adds to sum i mod 16), then pairwise.
  double (*sum_of_squares)(const float* x, std::int64_t count);
};

}  // namespace quaver::cpu
