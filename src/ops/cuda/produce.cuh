/// The one kernel behind every operation whose result may be cast: a function of (row, column), computed in
/// tiles, written in high precision, as FP8, and as transposed FP8, with amax and counters, in one pass.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"
#include "quaver/scaling.h"

namespace quaver::cuda {

/// An Output for device code; null where absent. Of the bytes of a cast either form may be absent.
template <typename T>
struct Sink {
  Matrix<T> values;
  Matrix<std::uint8_t> bytes, transposed;
  float* scale_inv;
  const float* scale;
  float* amax;
  unsigned long long* counters;
  Fp8 format;
  std::int32_t
      transposed_packs;  ///< (as a number: no padding) rows of `transposed` may be written 4 bytes at a time

  __device__ bool quantizes() const { return scale != nullptr; }
};

template <typename T>
Sink<T> sink_of(const Output& output) {
  Sink<T> sink{};
  sink.values = matrix_of<T>(output.values);
  if (!output.quantized.defined()) return sink;
  const QuantizedTensor& quantized = output.quantized;
  sink.bytes = matrix_of<std::uint8_t>(quantized.bytes);
  sink.transposed = matrix_of<std::uint8_t>(quantized.transposed);
  sink.scale_inv = quantized.scale_inv.template data<float>();
  sink.scale = output.quantizer.scale.data<float>();
  if (output.quantizer.amax) sink.amax = output.quantizer.amax.data<float>();
  if (output.quantizer.counters) sink.counters = output.quantizer.counters.data<unsigned long long>();
  sink.format = fp8_of(output.quantizer.format);
  sink.transposed_packs =
      sink.transposed.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(sink.transposed.data) % 4 == 0;
  return sink;
}
inline bool packs(const Output& output) {
  return packs(output.values) && packs(output.quantized.bytes);
}

constexpr int kTileRows = 128, kTileCols = 64;  ///< 128 bytes of every row and of every transposed row
constexpr int kTileThreads = 256;
constexpr int kTilePitch =
    kTileRows + 4;              ///< of a column's bytes in shared memory: columns start in other banks
constexpr int kThreadRows = 4;  ///< rows of packs that a thread takes: a word of each transposed row

constexpr std::int64_t tiles_of(std::int64_t rows, std::int64_t cols) {
  return blocks_for(rows, kTileRows) * blocks_for(cols, kTileCols);
}

/// Bits that are set where a byte of four is a zero, and where one is the largest number or beyond it: then nothing saturated, or
/// was NaN. Byte by byte: 0 - 1 borrows into bit 7, and so does the sum of 0x7E (e4m3) or 0x7B (e5m2) and what lacks to 0x80.
struct RemarkableBytes {
  unsigned zeros = 0, largest = 0;

  __device__ void look_at(Fp8 format, unsigned bytes) {
    const unsigned magnitudes = bytes & 0x7F7F7F7Fu;
    zeros |= (magnitudes - 0x01010101u) & 0x80808080u;
    largest |= (magnitudes + (format == Fp8::e4m3 ? 0x02020202u : 0x05050505u)) & 0x80808080u;
  }
};

/// What a thread saw of its elements before a cast; of fewer than 65,536, two counts a number.
struct CastTrace {
  float amax = 0;
  unsigned small = 0;  ///< zeros | underflowed << 16
  unsigned large = 0;  ///< saturated | NaN << 16
  unsigned infinite = 0;

  // From the numbers, not from the bytes: ptxas of CUDA 13.0 gets tests of a byte out of two converted pairs wrong.
  __device__ void count_small(Fp8 format, float x, float scaled) {
    if (x == 0) small += 1;
    if (x != 0 && fabsf(scaled) <= largest_rounded_to_zero(format)) small += 1u << 16;
  }
  __device__ void count_large(Fp8 format, float x, float scaled) {
    if (fabsf(scaled) > largest_fp8(format)) large += 1;
    if (x != x) large += 1u << 16;
    if (fabsf(x) == HUGE_VALF) infinite += 1;
  }

  __device__ std::uint8_t cast(Fp8 format, float scale, float x) {
    amax = fmaxf(amax, fabsf(x));  // ignores NaN
    count_small(format, x, x * scale);
    count_large(format, x, x * scale);
    return fp8_byte(format, x * scale);
  }
  /// The same for N numbers, a multiple of 4; the first of each 4 becomes the lowest byte of a word.
  template <int N>
  __device__ void cast(Fp8 format, float scale, const float (&x)[N], unsigned (&words)[N / 4]) {
    float scales[N];
#pragma unroll
    for (int i = 0; i < N; ++i) scales[i] = scale;
    cast(format, scales, x, words);
  }
  template <int N>
  __device__ void cast(Fp8 format, const float (&scales)[N], const float (&x)[N], unsigned (&words)[N / 4]) {
    float scaled[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      scaled[i] = x[i] * scales[i];
      amax = fmaxf(amax, fabsf(x[i]));
    }
    fp8_words(format, scaled, words);
    RemarkableBytes seen;
#pragma unroll
    for (int w = 0; w < N / 4; ++w) seen.look_at(format, words[w]);
    if (seen.zeros) {
#pragma unroll
      for (int i = 0; i < N; ++i) count_small(format, x[i], scaled[i]);
    }
    if (seen.largest) {
#pragma unroll
      for (int i = 0; i < N; ++i) count_large(format, x[i], scaled[i]);
    }
  }
};

/// Adds what a warp counted to the running totals.
__device__ inline void record_counts(unsigned long long* counters, const CastTrace& trace) {
  if (__ballot_sync(kAllLanes, (trace.small | trace.large | trace.infinite) != 0) == 0) return;
  const auto add = [&](CastCounter counter, unsigned count) {
    const unsigned sum = warp_reduce(count, Add{});
    if (threadIdx.x % 32 == 0 && counters && sum) {
      atomicAdd(counters + counter, static_cast<unsigned long long>(sum));
    }
  };
  add(kCastZeros, trace.small & 0xFFFFu);
  add(kCastUnderflowed, trace.small >> 16);
  add(kCastSaturated, trace.large & 0xFFFFu);
  add(kCastNan, trace.large >> 16);
  add(kCastInfinite, trace.infinite);
}

/// The same, and its amax. Bits of non-negative floats order like the floats. Reading first keeps most warps from the
/// atomics, all of which meet at one address.
template <typename T>
__device__ void record(const Sink<T>& sink, const CastTrace& trace) {
  const float amax = warp_reduce(trace.amax, Largest{});
  if (threadIdx.x % 32 == 0 && sink.amax && amax > *static_cast<volatile float*>(sink.amax)) {
    atomicMax(reinterpret_cast<int*>(sink.amax), __float_as_int(amax));
  }
  record_counts(sink.counters, trace);
}

/// What concerns the whole matrix: written by one thread.
template <typename T>
__device__ void record_once(const Sink<T>& sink, std::int64_t elements) {
  *sink.scale_inv = 1.0f / *sink.scale;
  if (sink.counters) atomicAdd(sink.counters + kCastElements, static_cast<unsigned long long>(elements));
}

/// Writes the bytes of a tile that lie in shared memory column by column.
__device__ inline void write_transposed(const Matrix<std::uint8_t>& to, bool by_four,
                                        const std::uint8_t* tile, std::int64_t row, std::int64_t column,
                                        std::int64_t rows, std::int64_t cols) {
  const int width = static_cast<int>(min(cols - column, std::int64_t{kTileCols}));
  const int height = static_cast<int>(min(rows - row, std::int64_t{kTileRows}));
  if (by_four && height == kTileRows) {
    for (int i = static_cast<int>(threadIdx.x); i < width * kTileRows / 4; i += kTileThreads) {
      const int n = i / (kTileRows / 4), m = i % (kTileRows / 4) * 4;
      *reinterpret_cast<unsigned*>(to.address(column + n, row + m)) =
          *reinterpret_cast<const unsigned*>(tile + n * kTilePitch + m);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < width * kTileRows; i += kTileThreads) {
    const int n = i / kTileRows, m = i % kTileRows;
    if (m < height) *to.address(column + n, row + m) = tile[n * kTilePitch + m];
  }
}

/// Word r holds the bytes of row r, the first column lowest; afterwards word c holds those of column c.
__device__ inline void transpose_words(unsigned (&words)[4]) {
  const unsigned low01 = select_bytes(words[0], words[1], 0x5140),
                 low23 = select_bytes(words[2], words[3], 0x5140);
  const unsigned high01 = select_bytes(words[0], words[1], 0x7362),
                 high23 = select_bytes(words[2], words[3], 0x7362);
  words[0] = select_bytes(low01, low23, 0x5410);
  words[1] = select_bytes(low01, low23, 0x7632);
  words[2] = select_bytes(high01, high23, 0x5410);
  words[3] = select_bytes(high01, high23, 0x7632);
}

/// The tile of one block.
struct OutputTile {
  std::int64_t row, column, rows, cols;  ///< where it begins, and the matrix's size
};

/// Blocks for the tiles of a matrix: tiles of a row, and rows of tiles, in two dimensions because one has 65,535.
inline dim3 tile_grid(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kMost = 65535;
  const std::int64_t down = blocks_for(rows, kTileRows), y = std::min(down, kMost);
  return dim3(static_cast<unsigned>(blocks_for(cols, kTileCols)), static_cast<unsigned>(y),
              static_cast<unsigned>(blocks_for(down, y)));
}
/// That of a block of tile_grid; some of the last blocks have none, and begin past the matrix's end.
__device__ inline OutputTile tile_of_block(std::int64_t rows, std::int64_t cols) {
  const std::int64_t down = static_cast<std::int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
  return {down * kTileRows, static_cast<std::int64_t>(blockIdx.x) * kTileCols, rows, cols};
}

/// The results of f for the elements (m, n + i), i < N.
template <int kOutputs, int N, typename F>
__device__ void evaluate_at(const F& f, std::int64_t m, std::int64_t n, float (&results)[kOutputs][N]) {
  f(m, n, f.template read<N>(m, n), results);
}

/// Rows of packs that a thread reads before it works on the first: all, so that more is under way at once, or fewer where there
/// are no registers for more.
template <typename Operands, int kOutputs>
constexpr int kRowsAtOnce = sizeof(Operands) * kOutputs <= 96    ? kThreadRows
                            : sizeof(Operands) * kOutputs <= 128 ? kThreadRows / 2
                                                                 : 1;

/// Element by element.
template <int kOutputs, typename T, typename F>
__device__ void fill_tile(const F& f, const std::array<Sink<T>, kOutputs>& sinks, const OutputTile& tile,
                          const float (&scales)[kOutputs], CastTrace (&traces)[kOutputs],
                          std::uint8_t (&bytes)[kOutputs][kTileCols * kTilePitch]) {
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kTileCols; i += kTileThreads) {
    const int m = i / kTileCols, n = i % kTileCols;
    if (tile.row + m >= tile.rows || tile.column + n >= tile.cols) continue;
    float results[kOutputs][1];
    evaluate_at(f, tile.row + m, tile.column + n, results);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const Sink<T>& sink = sinks[o];
      if (sink.values.data) sink.values.store(tile.row + m, tile.column + n, results[o]);
      if (!sink.quantizes()) continue;
      const std::uint8_t byte = traces[o].cast(sink.format, scales[o], as_float(round_as<T>(results[o][0])));
      if (sink.transposed.data) bytes[o][n * kTilePitch + m] = byte;
      if (sink.bytes.data) *sink.bytes.address(tile.row + m, tile.column + n) = byte;
    }
  }
}

/// A thread takes kThreadRows packs, one below the other, so that it holds whole words of the transposed rows. The lanes
/// of a warp take 4 packs of 8 such groups of rows: their words fall into different banks.
template <int kOutputs, typename T, typename F>
__device__ void fill_tile_by_packs(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                                   const OutputTile& tile, const float (&scales)[kOutputs],
                                   CastTrace (&traces)[kOutputs],
                                   std::uint8_t (&bytes)[kOutputs][kTileCols * kTilePitch]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = (warp % 2 * 4 + lane % 4) * kPack, m = (warp / 2 * 8 + lane / 4) * kThreadRows;
  const std::int64_t column = tile.column + n, row = tile.row + m;
  if (column >= tile.cols || row >= tile.rows) return;
  using Operands = decltype(f.template read<kPack>(row, column));
  constexpr int kAtOnce = kRowsAtOnce<Operands, kOutputs>;
  unsigned words[kOutputs][kPack / 4][kThreadRows] = {};
#pragma unroll
  for (int first = 0; first < kThreadRows; first += kAtOnce) {
    Operands operands[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r)
      operands[r] = f.template read<kPack>(min(row + first + r, tile.rows - 1), column);
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      if (row + first + r >= tile.rows) continue;
      float exact[kOutputs][kPack];
      f(row + first + r, column, operands[r], exact);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const Sink<T>& sink = sinks[o];
        const Pack<T, kPack> result = rounded<T>(exact[o]);
        if (sink.values.data) sink.values.store(row + first + r, column, result);
        if (!sink.quantizes()) continue;
        float x[kPack];
        widen(result, x);
        Pack<unsigned, kPack / 4> written;
        traces[o].cast(sink.format, scales[o], x, written.at);
#pragma unroll
        for (int w = 0; w < kPack / 4; ++w) words[o][w][first + r] = written.at[w];
        if (sink.bytes.data)
          *reinterpret_cast<Pack<unsigned, kPack / 4>*>(sink.bytes.address(row + first + r, column)) =
              written;
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (!sinks[o].quantizes() || !sinks[o].transposed.data) continue;
#pragma unroll
    for (int w = 0; w < kPack / 4; ++w) {
      transpose_words(words[o][w]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<unsigned*>(bytes[o] + (n + 4 * w + i) * kTilePitch + m) = words[o][w][i];
    }
  }
}

/// f(m, n, operands, results) sets results[output][i] for the elements (m, n + i), i < N, of what f.read<N>(m, n) has read of
/// matrices: functions of several cases branch on what is there already. Grid: tile_grid.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads, 4 - kOutputs)
    produce_tile(F f, std::array<Sink<T>, kOutputs> sinks, std::int64_t rows, std::int64_t cols) {
  __shared__ __align__(16) std::uint8_t bytes[kOutputs][kTileCols * kTilePitch];
  const OutputTile tile = tile_of_block(rows, cols);
  if (tile.row >= rows) return;
  CastTrace traces[kOutputs];
  float scales[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) scales[o] = sinks[o].quantizes() ? *sinks[o].scale : 0.0f;
  if constexpr (N == kPack) {
    fill_tile_by_packs<kOutputs, T>(f, sinks, tile, scales, traces, bytes);
  } else {
    fill_tile<kOutputs, T>(f, sinks, tile, scales, traces, bytes);
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const Sink<T>& sink = sinks[o];
    if (!sink.quantizes()) continue;
    if (sink.transposed.data) {
      write_transposed(sink.transposed, sink.transposed_packs, bytes[o], tile.row, tile.column, rows, cols);
    }
    record(sink, traces[o]);
    if (tile.row == 0 && tile.column == 0 && threadIdx.x == 0) record_once(sink, rows * cols);
  }
}

/// The same where nothing is cast: a thread takes one pack, or kPack elements one by one.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads)
    produce_values(F f, std::array<Matrix<T>, kOutputs> values, std::int64_t rows, std::int64_t cols) {
  const std::int64_t per_row = (cols + kPack - 1) / kPack;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (index >= rows * per_row) return;
  const std::int64_t m = quotient(index, per_row);
  const std::int64_t first = (index - m * per_row) * kPack;
  for (std::int64_t n = first; n < min(cols, first + kPack); n += N) {
    float results[kOutputs][N];
    evaluate_at(f, m, n, results);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) values[o].store(m, n, results[o]);
  }
}

/// A matrix without elements has no tiles, but a scale_inv.
template <typename T>
__global__ void produce_nothing(Sink<T> sink) {
  record_once(sink, 0);
}

/// A matrix as it is: its cast.
template <typename T>
struct Identity {
  Matrix<T> x;
  template <int N>
  __device__ Pack<T, N> read(std::int64_t m, std::int64_t n) const {
    return x.template pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t, const Pack<T, N>& read,
                             float (&result)[1][N]) const {
    widen(read, result[0]);
  }
};

/// Launches produce_tile or produce_values for a matrix of the given size. `pack`: f's own operands can be read in packs.
template <typename T, int kOutputs, typename F>
void produce(const char* name, const F& f, const std::array<Output, kOutputs>& outputs, std::int64_t rows,
             std::int64_t cols, bool pack, Stream stream) {
  std::array<Sink<T>, kOutputs> sinks{};
  for (int o = 0; o < kOutputs; ++o) {
    sinks[o] = sink_of<T>(outputs[o]);
    pack = pack && packs(outputs[o]);
  }
  bool quantizes = false, all_values = true;
  for (const Sink<T>& sink : sinks) {
    quantizes = quantizes || sink.scale;
    all_values = all_values && sink.values.data;
  }
  if (!quantizes && all_values) {
    std::array<Matrix<T>, kOutputs> values{};
    for (int o = 0; o < kOutputs; ++o) values[o] = sinks[o].values;
    const auto kernel = pack ? produce_values<kPack, kOutputs, T, F> : produce_values<1, kOutputs, T, F>;
    return launch(name, kernel, {blocks_for(rows * blocks_for(cols, kPack), kTileThreads), kTileThreads},
                  stream, f, values, rows, cols);
  }
  if (rows == 0 || cols == 0) {
    for (const auto& sink : sinks) {
      if (sink.scale) launch(name, produce_nothing<T>, {1, 1}, stream, sink);
    }
    return;
  }
  const auto kernel = pack ? produce_tile<kPack, kOutputs, T, F> : produce_tile<1, kOutputs, T, F>;
  launch(name, kernel, {tile_grid(rows, cols), kTileThreads}, stream, f, sinks, rows, cols);
}

}  // namespace quaver::cuda
