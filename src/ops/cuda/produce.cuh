/// The one kernel behind every operation whose result may be cast: a function of (row, column), computed in
/// tiles, written in high precision, as FP8, and as transposed FP8, with amax and counters, in one pass.
#pragma once

#include <array>
#include <cstdint>

#include "ops/cuda/sink.cuh"
#include "ops/cuda/tile.cuh"

namespace quaver::cuda {

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
                          const CastScale (&scales)[kOutputs], CastTrace (&traces)[kOutputs],
                          TransposedTile (&transposed)[kOutputs]) {
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
      const std::uint8_t byte = traces[o].cast(scales[o], as_float(round_as<T>(results[o][0])));
      if (sink.transposed.data) transposed[o].bytes[n * kTilePitch + m] = byte;
      if (sink.bytes.data) *sink.bytes.address(tile.row + m, tile.column + n) = byte;
    }
  }
}

/// A thread takes kThreadRows packs, one below the other, so that it holds whole words of the transposed rows. The lanes
/// of a warp take 4 packs of 8 such groups of rows: their words fall into different banks.
template <int kOutputs, typename T, typename F>
__device__ void fill_tile_by_packs(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                                   const OutputTile& tile, const CastScale (&scales)[kOutputs],
                                   CastTrace (&traces)[kOutputs], TransposedTile (&transposed)[kOutputs]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = (warp % 2 * 4 + lane % 4) * kPack, m = (warp / 2 * 8 + lane / 4) * kThreadRows;
  const std::int64_t column = tile.column + n, row = tile.row + m;
  if (column >= tile.cols || row >= tile.rows) return;
  const int last = static_cast<int>(min(std::int64_t{kThreadRows}, tile.rows - row)) - 1;
  using Operands = decltype(f.template read<kPack>(row, column));
  constexpr int kAtOnce = kRowsAtOnce<Operands, kOutputs>;
  unsigned words[kOutputs][kPack / 4][kThreadRows] = {};
#pragma unroll
  for (int first = 0; first < kThreadRows; first += kAtOnce) {
    Operands operands[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r)
      operands[r] = f.template read<kPack>(row + min(first + r, last), column);
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      if (first + r > last) continue;
      float exact[kOutputs][kPack];
      f(row + first + r, column, operands[r], exact);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const Sink<T>& sink = sinks[o];
        const Pack<T, kPack> result = rounded<T>(exact[o]);
        if (sink.values.data) sink.values.store(row + first + r, column, result);
        if (!sink.quantizes()) continue;
        Pack<unsigned, kPack / 4> written;
        traces[o].cast(scales[o], result, written.at);
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
        *reinterpret_cast<unsigned*>(transposed[o].bytes + (n + 4 * w + i) * kTilePitch + m) = words[o][w][i];
    }
  }
}

/// Fills a tile, and records what was cast. By all kTileThreads threads of a block.
template <bool kByPacks, int kOutputs, typename T, typename F>
__device__ void produce_block(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                              const OutputTile& tile) {
  __shared__ TransposedTile transposed[kOutputs];
  __shared__ BlockCounts<kTileThreads / 32> counts[kOutputs];
  CastTrace traces[kOutputs];
  CastScale scales[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) scales[o] = sinks[o].cast_scale();
  if constexpr (kByPacks) {
    fill_tile_by_packs<kOutputs, T>(f, sinks, tile, scales, traces, transposed);
  } else {
    fill_tile<kOutputs, T>(f, sinks, tile, scales, traces, transposed);
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (sinks[o].quantizes()) counts[o].leave(sinks[o].counters, traces[o]);
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const Sink<T>& sink = sinks[o];
    if (!sink.quantizes()) continue;
    if (sink.transposed.data) transposed[o].write(sink.transposed, sink.transposed_run, tile);
    if (static_cast<int>(threadIdx.x) / 32 == o) counts[o].record(sink.amax, sink.counters);
    if (tile.row == 0 && tile.column == 0 && threadIdx.x == 0) record_once(sink, tile.rows * tile.cols);
  }
}

/// f(m, n, operands, results) sets results[output][i] for the elements (m, n + i), i < N, of what f.read<N>(m, n) has read of
/// matrices: functions of several cases branch on what is there already. Grid: tile_grid.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads, 4 - kOutputs)
    produce_tile(F f, std::array<Sink<T>, kOutputs> sinks, std::int64_t rows, std::int64_t cols) {
  const OutputTile tile = tile_of_block(rows, cols);
  if (tile.row >= rows) return;
  produce_block<N == kPack, kOutputs, T>(f, sinks, tile);
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
