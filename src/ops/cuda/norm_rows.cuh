/// What norms share, forward and backward, whose rows a block of threads holds in registers, so that every element is read once:
/// thread i takes pack i of kNormRows rows at a time, and all blocks together have enough on its way. FP8 bytes are written from
/// there too; the transposed ones are gathered in shared memory.
#pragma once

#include "ops/cuda/produce.cuh"

namespace quaver::cuda {

constexpr int kNormRows = 4;  ///< rows at a time
constexpr int kNormThreads =
    384;  ///< at most: 3072 columns, and 80 registers for each of two blocks' threads
/// Kernels that read much before they work on it have as many threads on a multiprocessor at most, with 128 registers each.
constexpr int kFewWarpsThreads = 512;

/// Rows of a block that casts: 32 bytes of every transposed row, a whole sector of the caches. A sector written in part may
/// be evicted, and is then read from memory to be filled.
constexpr int kStripeRows = 32;
/// Rows that a thread writes at once: a block's last stripe may be one such chunk.
constexpr int kChunkRows = 16;

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
  float total = reduce_numbers<32>(values, Add{});
  const int number = number_of_lane<32, kValues>(lane);
  turn = 1 - turn;
  auto& buffer = sums.of_warp[turn];
  if (lane % (32 / kValues) == 0) buffer[warp][number] = total;
  __syncthreads();
  constexpr int kGroups = 32 / kValues, kMostWarps = kNormThreads / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  total = 0;
#pragma unroll
  for (int first = 0; first < kMostWarps; first += kGroups) {
    const int other = first + lane / kValues;
    if (other < warps) total += buffer[other][lane % kValues];
  }
#pragma unroll
  for (int step = kValues; step < 32; step *= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  return total;
}

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
    trace.round_and_cast<T>(scale, values, bytes.at);
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

}  // namespace quaver::cuda
