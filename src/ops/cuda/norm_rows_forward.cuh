/// Norms of rows that a block of threads holds in registers, forward.
#pragma once

#include "ops/cuda/norm_rows.cuh"
#include "ops/cuda/rows_ahead.cuh"

namespace quaver::cuda {

template <typename T>
constexpr int kPacksOfLine = 128 / (kPack * sizeof(T));  ///< a cache line has 128 bytes

template <typename T>
__device__ Pack<T, kPack> rounded_sum(const Pack<T, kPack>& a, const Pack<T, kPack>& b) {
  float sum[kPack], addend[kPack];
  widen(a, sum);
  widen(b, addend);
#pragma unroll
  for (int i = 0; i < kPack; ++i) sum[i] += addend[i];
  return rounded<T>(sum);
}

/// What forward reads and writes beside its result; bias and mean: null for RMSNorm; addend and sum as in NormInput.
template <typename T>
struct NormRows {
  Matrix<T> x, addend, sum;
  const float *gain, *bias;
  float *mean, *rstd;
  std::int64_t rows, cols;
};

/// Threads of a multiprocessor, by which the compiler divides registers: sums and addends that are read ahead, and casts, take more
/// than 80.
template <bool kAdds, bool kCasts>
constexpr int kMostForwardThreads = kAdds&& kCasts ? kFewWarpsThreads : 2 * kNormThreads;

/// A block takes `block_rows` rows, a multiple of kNormRows; if kCasts a stripe, or kNormRows, whose transposed bytes are written
/// from registers. kAdds: the sum of x and the addend is stored and normalised. kAhead, without an addend: rows are read ahead
/// through shared memory. Without kCasts y's values may be absent: then only the statistics (and the sum) are written.
template <bool kAdds, bool kCasts, bool kAhead, typename T>
__global__ void __launch_bounds__(kMostForwardThreads<kAdds, kCasts>, 1)
    norm_rows(NormRows<T> in, float epsilon, int centred, std::int64_t block_rows, Sink<T> y) {
  static_assert(kNormRows == 4 && kChunkRows == 16 && kStripeRows % kChunkRows == 0,
                "words and chunks of transposed rows");
  __shared__ BlockSums<kNormRows> sums;
  RowsAhead<T, 1, kNormRows> ahead;
  TransposedStripe stripe{};
  RowCast<T> output{};
  const bool in_stripe = block_rows == kStripeRows;
  if constexpr (kCasts) {
    auto* shared = static_cast<unsigned char*>(dynamic_shared_memory());
    if constexpr (kAhead) {
      ahead = {reinterpret_cast<Pack<T, kPack>*>(shared), static_cast<int>(blockDim.x)};
      shared += ahead.size(blockDim.x);
    }
    stripe = {reinterpret_cast<unsigned*>(shared), static_cast<int>(blockDim.x)};
    output.scale = y.cast_scale();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * kPack;
  const std::int64_t begin = blockIdx.x * block_rows, end = min(in.rows, begin + block_rows);
  const bool inside = n < in.cols;
  const float share = 1.0f / static_cast<float>(in.cols);
  const auto load = [&](const Matrix<T>& from, std::int64_t row, Pack<T, kPack>(&packs)[kNormRows]) {
    if (!inside) return;
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) packs[r] = from.template pack<kPack>(min(row + r, in.rows - 1), n);
  };
  constexpr bool kReadsAhead = kAdds == kCasts;  // the others lack registers
  constexpr bool kFetchesAhead = kCasts && !kReadsAhead && !kAhead;
  Pack<T, kPack> next[kNormRows] = {}, next_addend[kNormRows] = {};
  const auto start = [&](std::int64_t row) {
    if constexpr (kAhead) {
      if (inside && row < end) ahead.start(0, in.x, row, in.rows);
    }
  };
  const auto read = [&](std::int64_t row) {
    if (row >= end) return;
    if constexpr (kAhead) {
      wait_for_copies();
      if (inside) ahead.take(0, next);
      return start(row + kNormRows);
    }
    load(in.x, row, next);
    if constexpr (kAdds) load(in.addend, row, next_addend);
  };
  start(begin);
  if (kReadsAhead) read(begin);
  int turn = 0;
  for (std::int64_t row = begin; row < end; row += kNormRows) {
    if (!kReadsAhead) read(row);
    if (kFetchesAhead && inside && lane % kPacksOfLine<T> == 0) {
#pragma unroll
      for (int r = kNormRows; r < 2 * kNormRows; ++r) {
        if (row + r < end) in.x.fetch(row + r, n);
      }
    }
    Pack<T, kPack> x[kNormRows];
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      x[r] = kAdds ? rounded_sum(next[r], next_addend[r]) : next[r];
      if (kAdds && inside && row + r < in.rows) in.sum.store(row + r, n, x[r]);
    }
    if (kReadsAhead) read(row + kNormRows);  // on their way while these are worked on

    // Lane r % kNormRows has what concerns row r.
    const auto mean_of = [&](const auto& add_term) {
      float totals[kNormRows] = {};
#pragma unroll
      for (int r = 0; r < kNormRows; ++r) {
        float values[kPack];
        widen(x[r], values);
#pragma unroll
        for (int i = 0; i < kPack; ++i) totals[r] = add_term(totals[r], values[i], r);
        if (!inside) totals[r] = 0;
        forget_value(x[r]);
      }
      return sum_over_block(totals, sums, turn) * share;
    };
    float mean = 0, centres[kNormRows];
    if (centred) mean = mean_of([](float sum, float value, int) { return sum + value; });
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) centres[r] = __shfl_sync(kAllLanes, mean, r);
    const float variance = mean_of([&](float sum, float value, int r) {
      value -= centres[r];
      return fmaf(value, value, sum);
    });
    const float rstd = 1.0f / sqrtf(variance + epsilon);
    if (threadIdx.x < kNormRows && row + lane < in.rows) {
      in.rstd[row + lane] = rstd;
      if (centred) in.mean[row + lane] = mean;
    }
    if (!kCasts && !y.values.data) continue;

    float gain[kPack] = {},
          bias[kPack] = {};  // read again each time: registers are short, and caches hold them
    if (inside) Matrix<const float>{in.gain}.load(0, n, gain);
    if (inside && in.bias) Matrix<const float>{in.bias}.load(0, n, bias);
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      const float factor = __shfl_sync(kAllLanes, rstd, r);
      float values[kPack];
      widen(x[r], values);
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float scaled = (values[i] - centres[r]) * factor;
        values[i] = in.bias ? fmaf(scaled, gain[i], bias[i]) : scaled * gain[i];
      }
      if (!inside || row + r >= in.rows) continue;
      if (!kCasts || y.values.data) y.values.store(row + r, n, values);
      if constexpr (kCasts) output.cast(y, row, r, n, values);
    }
    if constexpr (kCasts) {
      const int w = static_cast<int>(row - begin) / kNormRows;
      if (inside && y.transposed.data) output.transpose(y, stripe, in_stripe, w, row, n);
    }
  }
  if constexpr (kCasts) {
    __syncthreads();
    if (y.transposed.data && in_stripe) stripe.write(y.transposed, begin, in.rows, in.cols);
    record(y, output.trace);
    if (blockIdx.x == 0 && threadIdx.x == 0) record_once(y, in.rows * in.cols);
  }
}

}  // namespace quaver::cuda
