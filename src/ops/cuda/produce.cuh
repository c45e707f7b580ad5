/// The one kernel behind every operation whose result may be cast: a function of (row, column), computed in
/// tiles, written in high precision, as FP8, and as transposed FP8, with amax and counters, in one pass.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "base/check.h"
#include "ops/cuda/sink.cuh"
#include "ops/cuda/tile.cuh"

namespace quaver::cuda {

/// The results of f for the elements (m, n + i), i < N.
template <int kOutputs, int N, typename F>
__device__ void evaluate_at(const F& f, int m, int n, float (&results)[kOutputs][N]) {
  f(m, n, f.template read<N>(m, n), results);
}

/// Blocks of several results take many tiles, and read the next one ahead: their arithmetic takes so long that reading would stop
/// meanwhile. With one result more blocks run at once, each for its tile, and read for each other.
template <int kOutputs>
constexpr bool kManyTiles = kOutputs > 1;
/// On a multiprocessor, at least; functions of one result that can do with few registers may have four.
template <int kOutputs, typename F>
constexpr int kBlocksAtOnce = kManyTiles<kOutputs> ? 2 : 3;

/// Rows of packs that a thread has under way: as many as there are registers for. Where it takes many tiles the next one follows
/// each that it works on; otherwise as many follow when all are done (AdamW has no registers for more).
template <typename Operands, int kOutputs>
constexpr int kRowsAhead = kManyTiles<kOutputs> ? (sizeof(Operands) * kOutputs <= 96 ? 2 : 1)
                                                : (sizeof(Operands) <= 96 ? kThreadRows : kThreadRows / 2);

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
      if (sink.writes_values()) sink.values.store(tile.row + m, tile.column + n, results[o]);
      if (!sink.quantizes()) continue;
      const std::uint8_t byte = traces[o].cast(scales[o], as_float(round_as<T>(results[o][0])));
      if (sink.writes_transposed()) transposed[o].bytes[TransposedTile::begin_of(n) + m] = byte;
      if (sink.writes_bytes()) *sink.bytes.address(tile.row + m, tile.column + n) = byte;
    }
  }
}

/// Where a thread's packs begin in a tile: it takes kThreadRows, one below the other, so that it holds whole words of the transposed
/// rows. The lanes of a warp take whole rows, of 8 packs.
struct ThreadPacks {
  int n = static_cast<int>(threadIdx.x) % 8 * kPack, m = static_cast<int>(threadIdx.x) / 8 * kThreadRows;

  /// The operands of row r; within the matrix in any case.
  template <typename F>
  __device__ auto read(const F& f, const OutputTile& tile, int r) const {
    return f.template read<kPack>(min(tile.row + m + r, tile.rows - 1),
                                  min(tile.column + n, tile.cols - kPack));
  }
};

/// Every word loses its lowest byte and gets one of `row` as its highest: after four rows it has their bytes, the first lowest.
__device__ inline void push_bytes(unsigned (&words)[kPack], const Pack<unsigned, kPack / 4>& row) {
#pragma unroll
  for (int i = 0; i < kPack; ++i)
    words[i] = select_bytes(words[i], row.at[i / 4], 0x4321u + (static_cast<unsigned>(i % 4) << 12));
}

/// A pack of a result, and its bytes if it is cast.
template <typename T>
__device__ void write_pack(const Sink<T>& sink, int m, int column, const float (&exact)[kPack],
                           const CastScale& scale, CastTrace& trace, Pack<unsigned, kPack / 4>& written) {
  const Pack<T, kPack> result =
      sink.quantizes() ? trace.round_and_cast<T>(scale, exact, written.at) : rounded<T>(exact);
  if (sink.writes_values()) store_pack(sink.values.near_address(m, column), result);
  if (sink.writes_bytes())
    *reinterpret_cast<Pack<unsigned, kPack / 4>*>(sink.bytes.near_address(m, column)) = written;
}

/// By packs. `ahead` has the first rows of the tile and gets those of `next`, if there are more.
template <int kOutputs, typename T, typename F, typename Operands, int kAhead>
__device__ void fill_tile_by_packs(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                                   const OutputTile& tile, const OutputTile& next, bool more,
                                   Operands (&ahead)[kAhead], const CastScale (&scales)[kOutputs],
                                   CastTrace (&traces)[kOutputs], TransposedTile (&transposed)[kOutputs]) {
  const ThreadPacks packs;
  const int column = tile.column + packs.n, row = tile.row + packs.m;
  unsigned words[kOutputs][kPack] = {};  // of transposed rows; rows come in from above
#pragma unroll(kManyTiles <kOutputs> ? 1 : kThreadRows)
  for (int first = 0; first < kThreadRows; first += kAhead) {
    const bool in_tile = first + kAhead < kThreadRows;
    if (!kManyTiles<kOutputs> && first > 0) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) ahead[i] = packs.read(f, tile, first + i);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const Operands operands = ahead[i];
      if (kManyTiles<kOutputs> && (in_tile || more))
        ahead[i] = packs.read(f, in_tile ? tile : next, (first + kAhead) % kThreadRows + i);
      const int m = row + first + i;
      Pack<unsigned, kPack / 4> written[kOutputs] = {};
      if (column < tile.cols && m < tile.rows) {
        float exact[kOutputs][kPack];
        f(m, column, operands, exact);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
          write_pack(sinks[o], m, column, exact[o], scales[o], traces[o], written[o]);
      }
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) push_bytes(words[o], written[o]);
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (!sinks[o].writes_transposed()) continue;
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      *reinterpret_cast<unsigned*>(transposed[o].bytes + TransposedTile::begin_of(packs.n + i) + packs.m) =
          words[o][i];
  }
}

/// Records what a block's threads saw, and of all blocks once that there are `elements`. By all threads.
template <int kOutputs, typename T>
__device__ void record_block(const std::array<Sink<T>, kOutputs>& sinks, const CastTrace (&traces)[kOutputs],
                             bool once, std::int64_t elements) {
  __shared__ BlockCounts<kTileThreads / 32> counts[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (sinks[o].quantizes()) counts[o].leave(sinks[o].counters, traces[o]);
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const Sink<T>& sink = sinks[o];
    if (!sink.quantizes()) continue;
    if (static_cast<int>(threadIdx.x) / 32 == o) counts[o].record(sink.amax, sink.counters);
    if (once && threadIdx.x == 0) record_once(sink, elements);
  }
}

template <int kOutputs, typename T>
__device__ void write_transposed(const std::array<Sink<T>, kOutputs>& sinks, const OutputTile& tile,
                                 const TransposedTile (&transposed)[kOutputs]) {
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const Sink<T>& sink = sinks[o];
    if (sink.writes_transposed()) transposed[o].write(sink.transposed, sink.transposed_run, tile);
  }
}

/// Fills one tile and writes what is transposed. By all kTileThreads threads of a block, which meet before `transposed` is used again.
template <bool kByPacks, int kOutputs, typename T, typename F>
__device__ void produce_tile(const F& f, const std::array<Sink<T>, kOutputs>& sinks, const OutputTile& tile,
                             const CastScale (&scales)[kOutputs], CastTrace (&traces)[kOutputs],
                             TransposedTile (&transposed)[kOutputs]) {
  if constexpr (kByPacks) {
    using Operands = decltype(ThreadPacks{}.read(f, {}, 0));
    constexpr int kAhead = kRowsAhead<Operands, kOutputs>;
    Operands ahead[kAhead];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) ahead[r] = ThreadPacks{}.read(f, tile, r);
    fill_tile_by_packs<kOutputs, T>(f, sinks, tile, tile, false, ahead, scales, traces, transposed);
  } else {
    fill_tile<kOutputs, T>(f, sinks, tile, scales, traces, transposed);
  }
  __syncthreads();
  write_transposed<kOutputs, T>(sinks, tile, transposed);
}

/// The same for all tiles of a block of functions of several results, of which the next one is read while one is filled. What `ahead`
/// and `next` have stays in registers only while nothing takes their addresses: no lambda, no pointer.
template <bool kByPacks, int kOutputs, typename T, typename F>
__device__ void produce_many_tiles(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                                   const BlockTiles& tiles, const CastScale (&scales)[kOutputs],
                                   CastTrace (&traces)[kOutputs]) {
  // Of two results a tile is filled while another is written; of three there is no room for that.
  constexpr int kTurns = kOutputs == 2 ? 2 : 1;
  __shared__ TransposedTile transposed[kTurns][kOutputs];
  using Operands = decltype(ThreadPacks{}.read(f, {}, 0));
  constexpr int kAhead = kByPacks ? kRowsAhead<Operands, kOutputs> : 1;
  Operands ahead[kAhead];
  OutputTile next = tiles.at(tiles.first);
  if constexpr (kByPacks) {
#pragma unroll
    for (int r = 0; r < kAhead; ++r) ahead[r] = ThreadPacks{}.read(f, next, r);
  }
  int turn = 0;
  for (int index = tiles.first; index < tiles.end; index += tiles.step) {
    const OutputTile tile = next;
    const bool more = index + tiles.step < tiles.end;
    if (more) next = tiles.at(index + tiles.step);
    if constexpr (kByPacks) {
      fill_tile_by_packs<kOutputs, T>(f, sinks, tile, next, more, ahead, scales, traces, transposed[turn]);
    } else {
      fill_tile<kOutputs, T>(f, sinks, tile, scales, traces, transposed[turn]);
    }
    __syncthreads();
    write_transposed<kOutputs, T>(sinks, tile, transposed[turn]);
    if (kTurns == 1) __syncthreads();
    turn = (turn + 1) % kTurns;
  }
}

/// Fills tiles, one if there is one result, and records what was cast. By all kTileThreads threads of a block.
template <bool kByPacks, int kOutputs, typename T, typename F>
__device__ void produce_block(const F& f, const std::array<Sink<T>, kOutputs>& sinks,
                              const BlockTiles& tiles) {
  CastTrace traces[kOutputs];
  CastScale scales[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) scales[o] = sinks[o].cast_scale();
  if constexpr (kManyTiles<kOutputs>) {
    produce_many_tiles<kByPacks, kOutputs, T>(f, sinks, tiles, scales, traces);
  } else {
    __shared__ TransposedTile transposed[kOutputs];
    produce_tile<kByPacks, kOutputs, T>(f, sinks, tiles.at(tiles.first), scales, traces, transposed);
  }
  record_block<kOutputs>(sinks, traces, tiles.first == 0, std::int64_t{tiles.rows} * tiles.cols);
}

/// f(m, n, operands, results) sets results[output][i] for the elements (m, n + i), i < N, of what f.read<N>(m, n) has read of
/// matrices: functions of several cases branch on what is there already. Grid: produce_blocks.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads, kBlocksAtOnce<kOutputs, F>)
    produce_tiles(F f, std::array<Sink<T>, kOutputs> sinks, std::int64_t rows, std::int64_t cols) {
  produce_block<N == kPack, kOutputs, T>(
      f, sinks,
      {static_cast<int>(rows), static_cast<int>(cols), static_cast<int>(blockIdx.x),
       static_cast<int>(gridDim.x), static_cast<int>(tiles_of(rows, cols))});
}
/// Blocks that take many tiles: few enough that each reads ahead, enough to even out. A CastTrace counts fewer than 65,536 numbers.
template <int kOutputs>
constexpr std::int64_t produce_blocks(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kBlocks = 1056, kThreadElements = kTileRows * kTileCols / kTileThreads;
  const std::int64_t tiles = tiles_of(rows, cols);
  if (!kManyTiles<kOutputs> || tiles <= kBlocks) return tiles;
  return std::max(kBlocks, blocks_for(tiles, 65535 / kThreadElements));
}

/// The same where nothing is cast: a thread takes one pack, or kPack elements one by one.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads)
    produce_values(F f, std::array<Matrix<T>, kOutputs> values, std::int64_t rows, std::int64_t cols) {
  const std::int64_t per_row = (cols + kPack - 1) / kPack;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (index >= rows * per_row) return;
  const std::int64_t row = quotient(index, per_row);
  const int m = static_cast<int>(row), first = static_cast<int>(index - row * per_row) * kPack;
  for (int n = first; n < min(static_cast<int>(cols), first + kPack); n += N) {
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
  __device__ Pack<T, N> read(int m, int n) const {
    return x.template near_pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(int, int, const Pack<T, N>& read, float (&result)[1][N]) const {
    widen(read, result[0]);
  }
};

template <>
inline constexpr int kBlocksAtOnce<1, Identity<bf16>> = 4;

/// Launches produce_tiles or produce_values for a matrix of the given size. `pack`: f's own operands can be read in packs.
template <typename T, int kOutputs, typename F>
void produce(const char* name, const F& f, const std::array<Output, kOutputs>& outputs, std::int64_t rows,
             std::int64_t cols, bool pack, Stream stream) {
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  if (rows > kMost || cols > kMost)
    fail(ErrorKind::usage, "{}: a matrix of {} x {}; a GPU's kernels take at most {} rows and columns", name,
         rows, cols, kMost);
  std::array<Sink<T>, kOutputs> sinks{};
  for (int o = 0; o < kOutputs; ++o) {
    sinks[o] = sink_of<T>(outputs[o]);
    pack = pack && packs(outputs[o]);
  }
  bool quantizes = false, all_values = true;
  for (const Sink<T>& sink : sinks) {
    quantizes = quantizes || sink.quantizes();
    all_values = all_values && sink.writes_values();
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
      if (sink.quantizes()) launch(name, produce_nothing<T>, {1, 1}, stream, sink);
    }
    return;
  }
  const auto kernel = pack ? produce_tiles<kPack, kOutputs, T, F> : produce_tiles<1, kOutputs, T, F>;
  launch(name, kernel, {produce_blocks<kOutputs>(rows, cols), kTileThreads}, stream, f, sinks, rows, cols);
}

}  // namespace quaver::cuda
