/// Norms of rows that a block of threads holds in registers, backward.
#pragma once

#include "ops/cuda/norm_rows.cuh"
#include "ops/cuda/rows_ahead.cuh"

namespace quaver::cuda {

/// What backward reads.
template <typename T>
struct NormGradient {
  Matrix<T> dy, x;
  const float *gain, *mean, *rstd;  // mean: null for RMSNorm

  /// dy and (x - mean) rstd of one element, for the gradients of bias and gain.
  __device__ void operator()(std::int64_t m, std::int64_t n, float (&values)[2]) const {
    const float d = dy(m, n);
    values[0] = d * ((x(m, n) - (mean ? mean[m] : 0.0f)) * rstd[m]);
    values[1] = d;
  }
};

/// x and dy of the rows that come next.
template <typename T>
using GradientRowsAhead = RowsAhead<T, 2, kNormRows>;

/// Every block leaves the sums over its rows of dy xhat and, if kCentred, of dy in its rows of partials. It takes `unit` rows, a
/// multiple of kNormRows, then as many behind those of all other blocks: so what blocks write of transposed rows at one time
/// lies together. If kCasts, transposed bytes go by stripes, where units are of kStripeRows, else from registers.
/// kAhead: rows are read ahead through shared memory.
template <bool kCentred, bool kCasts, bool kAhead, typename T>
__global__ void __launch_bounds__(kFewWarpsThreads, 1)
    norm_rows_backward(NormGradient<T> in, std::int64_t rows, std::int64_t cols, int unit, int accumulate,
                       Sink<T> dx, float* partials) {
  constexpr int kSums = kCentred ? 2 : 1;
  __shared__ BlockSums<kSums * kNormRows> sums;
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * kPack;
  const bool inside = n < cols, in_stripes = unit == kStripeRows;
  auto* shared = static_cast<unsigned char*>(dynamic_shared_memory());
  GradientRowsAhead<T> ahead;
  if constexpr (kAhead) {
    ahead = {reinterpret_cast<Pack<T, kPack>*>(shared), threads};
    shared += ahead.size(threads);
  }
  const TransposedStripe stripe{reinterpret_cast<unsigned*>(shared), threads};
  RowCast<T> output{};
  if constexpr (kCasts) output.scale = dx.cast_scale();

  float next_rstd = 0, next_mean = 0;  // of lane % kNormRows
  const auto read_ahead = [&](std::int64_t row) {
    if (row >= rows) return;
    const std::int64_t of_lane = min(row + lane % kNormRows, rows - 1);
    next_rstd = in.rstd[of_lane];
    if (kCentred) next_mean = in.mean[of_lane];
    if constexpr (kAhead) {
      if (!inside) return;
      ahead.start(0, in.x, row, rows);
      ahead.start(1, in.dy, row, rows);
    }
  };
  const float width = static_cast<float>(cols);
  float gain[kPack] = {}, of_columns[kSums][kPack] = {};
  if (inside) Matrix<const float>{in.gain}.load(0, n, gain);
  int turn = 0, of_unit = 0;
  std::int64_t row = std::int64_t{blockIdx.x} * unit;
  read_ahead(row);
  while (row < rows) {
    const bool ends_unit = of_unit + kNormRows == unit;
    const std::int64_t next =
        ends_unit ? row + kNormRows + std::int64_t{gridDim.x - 1} * unit : row + kNormRows;
    Pack<T, kPack> x[kNormRows] = {}, dy[kNormRows] = {}, before[kNormRows] = {};
    if constexpr (kAhead) {
      wait_for_copies();
      if (inside) {
        ahead.take(0, x);
        ahead.take(1, dy);
      }
    } else {
#pragma unroll
      for (int r = 0; r < kNormRows; ++r) {
        if (!inside || row + r >= rows) continue;  // a row that is absent has no gradient
        x[r] = in.x.template pack<kPack>(row + r, n);
        dy[r] = in.dy.template pack<kPack>(row + r, n);
      }
    }
    if (accumulate && inside) {
#pragma unroll
      for (int r = 0; r < kNormRows; ++r)
        before[r] = dx.values.template pack<kPack>(min(row + r, rows - 1), n);
    }
    const float rstds = next_rstd, means = next_mean;
    read_ahead(next);
    // xhat and the gradient of xhat of row r
    const auto read = [&](int r, float(&xhat)[kPack], float(&d)[kPack]) {
      const float factor = __shfl_sync(kAllLanes, rstds, r);
      const float centre = kCentred ? __shfl_sync(kAllLanes, means, r) : 0.0f;
      widen(x[r], xhat);
      widen(dy[r], d);
#pragma unroll
      for (int i = 0; i < kPack; ++i) xhat[i] = kCentred ? (xhat[i] - centre) * factor : xhat[i] * factor;
    };
    float totals[kSums * kNormRows] = {};
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      float xhat[kPack], d[kPack];
      read(r, xhat, d);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        of_columns[0][i] += d[i] * xhat[i];
        totals[r] += d[i] * gain[i] * xhat[i];
        if constexpr (kCentred) {
          of_columns[1][i] += d[i];
          totals[kNormRows + r] += d[i] * gain[i];
        }
      }
    }
    const float averages = sum_over_block(totals, sums, turn) / width;
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      forget_value(x[r]);
      forget_value(dy[r]);
    }
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      float xhat[kPack], d[kPack], old[kPack];
      read(r, xhat, d);
      const float factor = __shfl_sync(kAllLanes, rstds, r), product = __shfl_sync(kAllLanes, averages, r);
      const float gradient = kCentred ? __shfl_sync(kAllLanes, averages, kNormRows + r) : 0.0f;
      if (!inside || row + r >= rows) continue;
      widen(before[r], old);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float value = factor * (d[i] * gain[i] - product * xhat[i] - gradient);
        d[i] = accumulate ? old[i] + value : value;
      }
      if (!kCasts || dx.values.data) dx.values.store(row + r, n, d);
      if constexpr (kCasts) output.cast(dx, row, r, n, d);
    }
    if constexpr (kCasts) {
      if (dx.transposed.data && inside) output.transpose(dx, stripe, in_stripes, of_unit / kNormRows, row, n);
      // The sums of the next rows are one more barrier between these reads and what is written next.
      if (dx.transposed.data && in_stripes && (ends_unit || next >= rows)) {
        __syncthreads();
        stripe.write(dx.transposed, row - of_unit, rows, cols);
      }
    }
    of_unit = ends_unit ? 0 : of_unit + kNormRows;
    row = next;
  }
  if constexpr (kCasts) {
    record(dx, output.trace);
    if (blockIdx.x == 0 && threadIdx.x == 0) record_once(dx, rows * cols);
  }
  if (!inside) return;
#pragma unroll
  for (int s = 0; s < kSums; ++s) {
    Matrix<float>{partials, cols}.store(static_cast<std::int64_t>(blockIdx.x) * kSums + s, n, of_columns[s]);
  }
}

}  // namespace quaver::cuda
