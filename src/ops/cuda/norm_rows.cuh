/// Norms of rows that a block of threads holds in registers, so that every element is read once: thread i takes pack i of
/// kNormRows rows at a time, and all blocks together have enough on its way. FP8 bytes are written from there too; the
/// transposed ones are gathered in shared memory.
#pragma once

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {

constexpr int kNormRows = 4;  ///< rows at a time
constexpr int kNormThreads =
    384;  ///< at most: 3072 columns, and 80 registers for each of two blocks' threads
/// Kernels that read much before they work on it have as many threads on a multiprocessor at most, with 128 registers each.
constexpr int kFewWarpsThreads = 512;

template <typename T>
constexpr int kPacksOfLine = 128 / (kPack * sizeof(T));  ///< a cache line has 128 bytes

/// Rows of a block that casts: 32 bytes of every transposed row, a whole sector of the caches. A sector written in part may
/// be evicted, and is then read from memory to be filled.
constexpr int kStripeRows = 32;
/// Rows that a thread writes at once: a block's last stripe may be one such chunk.
constexpr int kChunkRows = 16;

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

/// The compiler takes the pack for changed: it does not keep in further registers what it made of it before.
template <typename T, int N>
__device__ void forget_value([[maybe_unused]] Pack<T, N>& pack) {
#ifdef __CUDACC__
  if constexpr (kPairs<T, N>) {
    for (auto& word : pack.words) asm volatile("" : "+r"(word));
  } else {
    for (auto& value : pack.at) asm volatile("" : "+f"(value));
  }
#endif
}

/// Sums of kValues numbers (a power of two, at most 8) over the block at once: lane i of every warp gets the total of
/// number i % kValues. Called by all threads of the block; the buffers take turns, so that one barrier suffices.
template <int kValues>
struct BlockSums {
  float of_warp[2][kNormThreads / 32][kValues];
};
template <int kValues>
__device__ float sum_over_block(float (&values)[kValues], BlockSums<kValues>& sums, int& turn) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  // Lanes at a distance exchange halves of the numbers: afterwards each has half as many.
  int distance = 16;
#pragma unroll
  for (int left = kValues / 2; left > 0; left /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float sent = upper ? values[2 * i] : values[2 * i + 1];
      const float kept = upper ? values[2 * i + 1] : values[2 * i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, distance);
    }
  }
  float total = values[0];
#pragma unroll
  for (int rest = 16 / kValues; rest > 0; rest /= 2) total += __shfl_xor_sync(kAllLanes, total, rest);
  int number = 0;  // which number this lane has
#pragma unroll
  for (int bit = 1, of_lane = 16; bit < kValues; bit *= 2, of_lane /= 2) number |= (lane & of_lane) ? bit : 0;
  turn = 1 - turn;
  auto& buffer = sums.of_warp[turn];
  if (lane % (32 / kValues) == 0) buffer[warp][number] = total;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  total = buffer[0][lane % kValues];
  for (int other = 1; other < warps; ++other) total += buffer[other][lane % kValues];
  return total;
}

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

/// The transposed bytes of a stripe of kStripeRows rows in shared memory. Word w holds rows 4 w to 4 w + 3 of a column; a
/// thread's words of one column lie beside those of its neighbours, so that they fall into different banks.
struct TransposedStripe {
  static constexpr int kChunks = kStripeRows / kChunkRows;
  static constexpr int kPadding = 8 / kChunks;  ///< the chunks of a column start in other banks

  unsigned* words;
  int threads;  ///< of the block

  static constexpr std::int64_t size(std::int64_t threads) {
    return (kStripeRows / 4) * (kPack * threads + kPadding) * std::int64_t{sizeof(unsigned)};
  }
  __device__ unsigned& word(int w, int column_of_pack, int thread) const {
    return words[w * (kPack * threads + kPadding) + column_of_pack * threads + thread];
  }
  /// Neighbouring lanes write a column's chunks, of rows before `end`, a multiple of kChunkRows.
  __device__ void write(const Matrix<std::uint8_t>& to, std::int64_t row, std::int64_t end,
                        std::int64_t cols) const {
    const int packs = static_cast<int>(cols) / kPack;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      for (int item = static_cast<int>(threadIdx.x); item < packs * kChunks; item += threads) {
        const int thread = item / kChunks, chunk = item % kChunks;
        if (row + kChunkRows * chunk >= end) continue;
        Pack<unsigned, 4> bytes;
#pragma unroll
        for (int w = 0; w < 4; ++w) bytes.at[w] = word(4 * chunk + w, i, thread);
        *reinterpret_cast<Pack<unsigned, 4>*>(to.address(thread * kPack + i, row + kChunkRows * chunk)) =
            bytes;
      }
    }
  }
};

/// Casts what a thread has of kNormRows rows.
template <typename T>
struct RowCast {
  CastScale scale;
  CastTrace trace;
  unsigned words[kPack / 4][kNormRows];

  __device__ void cast(const Sink<T>& sink, std::int64_t row, int r, std::int64_t n,
                       const float (&values)[kPack]) {
    Pack<unsigned, kPack / 4> bytes;
    trace.cast(scale, rounded<T>(values), bytes.at);
#pragma unroll
    for (int w = 0; w < kPack / 4; ++w) words[w][r] = bytes.at[w];
    *reinterpret_cast<Pack<unsigned, kPack / 4>*>(sink.bytes.address(row + r, n)) = bytes;
  }
  /// Writes the pack's transposed bytes of kNormRows rows: as word w of a stripe, or where they belong.
  __device__ void transpose(const Sink<T>& sink, const TransposedStripe& stripe, bool in_stripe, int w,
                            std::int64_t row, std::int64_t n) {
#pragma unroll
    for (int half = 0; half < kPack / 4; ++half) {
      transpose_words(words[half]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 4 * half + i;
        if (in_stripe) {
          stripe.word(w, column, static_cast<int>(threadIdx.x)) = words[half][i];
        } else {
          *reinterpret_cast<unsigned*>(sink.transposed.address(n + column, row)) = words[half][i];
        }
      }
    }
  }
};

/// Whether norm_rows reads sums and their addends ahead, and casts: that takes more than 80 registers.
template <bool kAdds, bool kCasts>
constexpr bool kFewWarps = kAdds&& kCasts;

/// A block takes `block_rows` rows, a multiple of kNormRows; if kCasts a stripe, or kNormRows, whose transposed bytes are written
/// from registers. kAdds: the sum of x and the addend
/// is stored and normalised. Without kCasts y's values may be absent: then only the statistics (and the sum) are written.
template <bool kAdds, bool kCasts, typename T>
__global__ void __launch_bounds__(kFewWarps<kAdds, kCasts> ? kFewWarpsThreads : kNormThreads,
                                  kFewWarps<kAdds, kCasts> ? 1 : 2)
    norm_rows(NormRows<T> in, float epsilon, int centred, std::int64_t block_rows, Sink<T> y) {
  static_assert(kNormRows == 4 && kChunkRows == 16 && kStripeRows % kChunkRows == 0,
                "words and chunks of transposed rows");
  __shared__ BlockSums<kNormRows> sums;
  TransposedStripe stripe{};
  RowCast<T> output{};
  const bool in_stripe = block_rows == kStripeRows;
  if constexpr (kCasts) {
    stripe = {static_cast<unsigned*>(dynamic_shared_memory()), static_cast<int>(blockDim.x)};
    output.scale = y.cast_scale();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * kPack;
  const std::int64_t begin = blockIdx.x * block_rows, end = min(in.rows, begin + block_rows);
  const bool inside = n < in.cols;
  const float width = static_cast<float>(in.cols);
  const auto load = [&](const Matrix<T>& from, std::int64_t row, Pack<T, kPack>(&packs)[kNormRows]) {
    if (!inside) return;
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) packs[r] = from.template pack<kPack>(min(row + r, in.rows - 1), n);
  };
  constexpr bool kReadsAhead = kAdds == kCasts;  // the others lack registers
  constexpr bool kFetchesAhead = kCasts && !kReadsAhead;
  Pack<T, kPack> next[kNormRows] = {}, next_addend[kNormRows] = {};
  const auto read = [&](std::int64_t row) {
    if (row >= end) return;
    load(in.x, row, next);
    if constexpr (kAdds) load(in.addend, row, next_addend);
  };
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
        forget_value(x[r]);
      }
      return sum_over_block(totals, sums, turn) / width;
    };
    float mean = 0, centres[kNormRows];
    if (centred) mean = mean_of([](float sum, float value, int) { return sum + value; });
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) centres[r] = __shfl_sync(kAllLanes, mean, r);
    const float variance = mean_of([&](float sum, float value, int r) {
      value = inside ? value - centres[r] : 0.0f;
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
        const float scaled = (values[i] - centres[r]) * factor * gain[i];
        values[i] = in.bias ? scaled + bias[i] : scaled;
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

/// Whether a block of norm_rows_backward gathers transposed bytes: large blocks do, of whole chunks.
constexpr bool takes_stripes(std::int64_t block_rows) {
  return block_rows >= kStripeRows;
}

/// Every block leaves the sums over its `block_rows` rows, a multiple of kNormRows, of dy xhat and, if kCentred, of dy in
/// its rows of partials. If kCasts, transposed bytes go by stripes, the last of which may be a chunk, where takes_stripes, else
/// from registers.
template <bool kCentred, bool kCasts, typename T>
__global__ void __launch_bounds__(kFewWarpsThreads, 1)
    norm_rows_backward(NormGradient<T> in, std::int64_t rows, std::int64_t cols, std::int64_t block_rows,
                       int accumulate, Sink<T> dx, float* partials) {
  constexpr int kSums = kCentred ? 2 : 1;
  __shared__ BlockSums<kSums * kNormRows> sums;
  TransposedStripe stripe{};
  RowCast<T> output{};
  const bool in_stripes = takes_stripes(block_rows);
  if constexpr (kCasts) {
    stripe = {static_cast<unsigned*>(dynamic_shared_memory()), static_cast<int>(blockDim.x)};
    output.scale = dx.cast_scale();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * kPack;
  const std::int64_t begin = blockIdx.x * block_rows, end = min(rows, begin + block_rows);
  const bool inside = n < cols;
  const float width = static_cast<float>(cols);
  float gain[kPack] = {}, of_columns[kSums][kPack] = {};
  if (inside) Matrix<const float>{in.gain}.load(0, n, gain);
  int turn = 0;
  for (std::int64_t row = begin; row < end; row += kNormRows) {
    Pack<T, kPack> x[kNormRows] = {}, dy[kNormRows] = {}, before[kNormRows] = {};
    const std::int64_t of_lane = min(row + lane % kNormRows, rows - 1);
#pragma unroll
    for (int r = 0; r < kNormRows; ++r) {
      if (!inside || row + r >= rows) continue;  // a row that is absent has no gradient
      x[r] = in.x.template pack<kPack>(row + r, n);
      dy[r] = in.dy.template pack<kPack>(row + r, n);
    }
    if (accumulate && inside) {
#pragma unroll
      for (int r = 0; r < kNormRows; ++r)
        before[r] = dx.values.template pack<kPack>(min(row + r, rows - 1), n);
    }
    const float rstds = in.rstd[of_lane], means = kCentred ? in.mean[of_lane] : 0.0f;
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
      if (!dx.transposed.data) continue;
      const int w = static_cast<int>(row - begin) % kStripeRows / kNormRows;
      if (inside) output.transpose(dx, stripe, in_stripes, w, row, n);
      // The sums of the next rows are one more barrier between these reads and what is written next.
      if (!in_stripes || (w + 1 < kStripeRows / kNormRows && row + kNormRows < end)) continue;
      __syncthreads();
      stripe.write(dx.transposed, row - w * kNormRows, end, cols);
    }
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
