/// Casts in blocks: of 1 x 128, 128 x 1 or 128 x 128 numbers with a power of two for each, in FP32; of 1 x 32 or 32 x 1 with one in
/// E8M0 (MXFP8), swizzled.
///
/// A block of threads takes a tile of 128 x 128 numbers into its registers, reads once, finds the amaxes of the tile's blocks
/// and writes codes, transposed codes and scales.
#pragma once

#include <array>
#include <cfloat>
#include <cmath>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/e8m0.cuh"
#include "ops/cuda/produce.cuh"
#include "ops/scale_tiles.h"

namespace quaver::cuda {

/// Which numbers of a tile share a scale: those of a row, of a column, all; or 32 that lie side by side in a row, or in a column.
enum class BlockShape : std::int32_t { row, column, square, mx_row, mx_column };
constexpr bool is_mx(BlockShape shape) {
  return shape == BlockShape::mx_row || shape == BlockShape::mx_column;
}

/// Where a cast in blocks goes, for device code; null where absent.
struct BlockSink {
  Matrix<std::uint8_t> bytes, transposed;   ///< of blocks in columns `bytes` may be absent
  Matrix<float> scales, transposed_scales;  ///< as BlockScales has them; what pads a row is set to 0
  Matrix<std::uint8_t> scale_tiles;         ///< of MXFP8: a row for 128 rows or columns (ops/scale_tiles.h)
  unsigned long long* counters;
  Fp8 format;                   ///< of MXFP8; others are e4m3
  std::int32_t transposed_run;  ///< bytes of a row of `transposed` that may be written at once
};

constexpr int kSideWords = static_cast<int>(kBlock) / 4;      ///< of a tile's transposed row
constexpr int kSidePacks = static_cast<int>(kBlock) / kPack;  ///< of a tile's row
/// A thread holds kPack x kPack numbers.
constexpr int kBlockCastThreads = kSidePacks * kSidePacks;

/// 448 / amax rounded down to a power of two; 1 if amax is 0 or infinite. As fp8/block_scaling.cpp has it.
__device__ inline float block_scale(float amax) {
  if (!(amax > 0) || amax == HUGE_VALF) return 1.0f;
  return __uint_as_float(__float_as_uint(fminf(448.0f / amax, FLT_MAX)) & 0xFF800000u);
}

/// A thread's numbers: rows [row, row + kPack) and columns [column, column + kPack), of which the first `rows` and `cols` lie in the
/// matrix; the others are zeros.
template <typename T>
struct ThreadTile {
  std::int64_t row, column;
  int rows, cols;
  Pack<T, kPack> at[kPack];

  __device__ float operator()(int m, int n) const { return as_float(at[m].element(n)); }
};

template <bool kPacks, typename T>
__device__ ThreadTile<T> load_tile(const Matrix<T>& x, std::int64_t row, std::int64_t column,
                                   std::int64_t rows, std::int64_t cols) {
  const auto inside = [](std::int64_t begin, std::int64_t size) {
    return static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kPack}, size - begin)));
  };
  ThreadTile<T> tile{row, column, inside(row, rows), inside(column, cols), {}};
#pragma unroll
  for (int m = 0; m < kPack; ++m) {
    if (m >= tile.rows) continue;
    if constexpr (kPacks) {
      if (tile.cols > 0) tile.at[m] = x.template pack<kPack>(row + m, column);
    } else {
#pragma unroll
      for (int n = 0; n < kPack; ++n) {
        if (n < tile.cols) tile.at[m].set(n, *x.address(row + m, column + n));
      }
    }
  }
  return tile;
}

/// Place of a tile in the matrix, in tiles, and the matrix.
struct TilePlace {
  std::int64_t down, across, rows, cols;
};

/// The larger magnitude of a pair of larger_numbers; 0 if both are NaN.
__device__ inline float larger_half(unsigned pair) {
  return fmaxf(0.0f, fmaxf(low_half(pair & kMagnitudes), high_half(pair & kMagnitudes)));
}
/// The largest magnitude of a thread's row; NaN are left out.
template <typename T>
__device__ float row_amax(const Pack<T, kPack>& row) {
  if constexpr (kPairs<T, kPack>) {
    unsigned largest = row.words[0];
#pragma unroll
    for (int w = 1; w < kPack / 2; ++w) largest = larger_numbers(largest, row.words[w]);
    return larger_half(largest);
  } else {
    float amax = 0;
#pragma unroll
    for (int n = 0; n < kPack; ++n) amax = fmaxf(amax, fabsf(row.at[n]));
    return amax;
  }
}

/// Of kPack rows of a tile, all of which half a warp holds, every lane has one; two lanes have the same.
__device__ inline int row_of_lane(int lane) {
  return (lane >> 3 & 1) | (lane >> 1 & 2) | (lane << 1 & 4);
}
__device__ inline int lane_of_row(int lane, int row) {
  return (lane & 16) | (row & 1) << 3 | (row & 2) << 1 | (row & 4) >> 1;
}
/// The amax of row row_of_lane: lanes at a distance exchange halves of what they have. Through reduce_numbers, which does the same,
/// ptxas (13.0) orders the kernel so that it moves 0.70 to 0.76 of a copy instead of 0.83 (docs/results/h100.md).
template <typename T>
__device__ float amax_of_row(const ThreadTile<T>& tile, int lane) {
  static_assert(kPack == 8 && kSidePacks == 16);
  float amaxes[kPack];
#pragma unroll
  for (int m = 0; m < kPack; ++m) amaxes[m] = row_amax(tile.at[m]);
#pragma unroll
  for (int left = kPack / 2; left > 0; left /= 2) {
    const int distance = 2 * left;
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float sent = upper ? amaxes[2 * i] : amaxes[2 * i + 1];
      const float kept = upper ? amaxes[2 * i + 1] : amaxes[2 * i];
      amaxes[i] = fmaxf(kept, __shfl_xor_sync(kAllLanes, sent, distance));
    }
  }
  return fmaxf(amaxes[0], __shfl_xor_sync(kAllLanes, amaxes[0], 1));
}

/// scales[m] of row m; all lanes that hold a row's packs, half a warp, find its amax together.
template <typename T>
__device__ void scale_rows(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink,
                           float (&scales)[kPack]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, m = row_of_lane(lane);
  const float scale = block_scale(amax_of_row(tile, lane));
  if (lane % 2 == 0) {
    const std::int64_t row = tile.row + m;
    const bool inside = m < tile.rows;
    if (inside) *sink.scales.address(row, place.across) = 1.0f / scale;
    if (sink.transposed_scales.data && row < sink.transposed_scales.stride)
      *sink.transposed_scales.address(place.across, row) = inside ? 1.0f / scale : 0.0f;
  }
#pragma unroll
  for (int r = 0; r < kPack; ++r) scales[r] = __shfl_sync(kAllLanes, scale, lane_of_row(lane, r));
}

constexpr int kBlockCastWarps = kBlockCastThreads / 32;
constexpr int kWarpRows = kPack * 32 / kSidePacks;  ///< of a tile

/// Amaxes of the columns of each warp's kWarpRows rows. By all threads of the block, which have them afterwards.
template <typename T>
__device__ void find_column_amaxes(const ThreadTile<T>& tile, float (&amaxes)[kBlockCastWarps][kBlock]) {
  const int thread = static_cast<int>(threadIdx.x), first = thread % kSidePacks * kPack;
  float* const of_warp = amaxes[thread / 32] + first;
  const bool writes = thread % 32 < kSidePacks;  // a warp holds two groups of rows
  if constexpr (kPairs<T, kPack>) {
#pragma unroll
    for (int w = 0; w < kPack / 2; ++w) {
      unsigned pair = tile.at[0].words[w];
#pragma unroll
      for (int m = 1; m < kPack; ++m) pair = larger_numbers(pair, tile.at[m].words[w]);
      pair = larger_numbers(pair, __shfl_xor_sync(kAllLanes, pair, kSidePacks)) & kMagnitudes;
      if (!writes) continue;
      of_warp[2 * w] = fmaxf(0.0f, low_half(pair));
      of_warp[2 * w + 1] = fmaxf(0.0f, high_half(pair));
    }
  } else {
#pragma unroll
    for (int n = 0; n < kPack; ++n) {
      float amax = 0;
#pragma unroll
      for (int m = 0; m < kPack; ++m) amax = fmaxf(amax, fabsf(tile(m, n)));
      amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, kSidePacks));
      if (writes) of_warp[n] = amax;
    }
  }
  __syncthreads();
}

/// scales[n] of column n.
template <typename T>
__device__ void scale_columns(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink,
                              float (&scales)[kPack]) {
  __shared__ float amaxes[kBlockCastWarps][kBlock];
  __shared__ float found[kBlock];
  const int thread = static_cast<int>(threadIdx.x), first = thread % kSidePacks * kPack;
  find_column_amaxes(tile, amaxes);
  if (thread < kBlock) {
    float amax = 0;
#pragma unroll
    for (int warp = 0; warp < kBlockCastWarps; ++warp) amax = fmaxf(amax, amaxes[warp][thread]);
    const float scale = found[thread] = block_scale(amax);
    const std::int64_t column = place.across * kBlock + thread;
    if (column < sink.scales.stride)
      *sink.scales.address(place.down, column) = column < place.cols ? 1.0f / scale : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kPack; ++n) scales[n] = found[first + n];
}

/// All of `scales` are the tile's.
template <typename T>
__device__ void scale_square(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink,
                             float (&scales)[kPack]) {
  float amax = 0;
#pragma unroll
  for (int m = 0; m < kPack; ++m) amax = fmaxf(amax, row_amax(tile.at[m]));
  const float scale = block_scale(block_reduce<kBlockCastThreads>(amax, Largest{}));
#pragma unroll
  for (float& each : scales) each = scale;
  if (threadIdx.x != 0) return;
  // A table's row, and what pads it behind its last entry.
  const auto write = [&](const Matrix<float>& to, std::int64_t row, std::int64_t column, std::int64_t size) {
    if (!to.data) return;
    *to.address(row, column) = 1.0f / scale;
    if (column + 1 < (size + kBlock - 1) / kBlock) return;
    for (std::int64_t behind = column + 1; behind < to.stride; ++behind) *to.address(row, behind) = 0;
  };
  write(sink.scales, place.down, place.across, place.cols);
  write(sink.transposed_scales, place.across, place.down, place.rows);
}

/// A tile of E8M0 scales; a cast's tile of numbers has one. By all threads of the block, after a barrier.
__device__ inline void write_scale_tile(const BlockSink& sink, std::int64_t down, std::int64_t across,
                                        const std::uint8_t* bytes) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kScaleTileBytes / 4) return;
  reinterpret_cast<unsigned*>(sink.scale_tiles.address(down, across * kScaleTileBytes))[thread] =
      reinterpret_cast<const unsigned*>(bytes)[thread];
}

/// scales[m] of row m. What lies outside the matrix is zeros, so its blocks have byte 0.
template <typename T>
__device__ void scale_mx_rows(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink,
                              float (&scales)[kPack]) {
  constexpr int kLanes = static_cast<int>(kMxBlock) / kPack;  // that hold a block
  __shared__ __align__(4) std::uint8_t bytes[kScaleTileBytes];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int m = 0; m < kPack; ++m) {
    const unsigned byte =
        e8m0_byte(group_reduce(row_amax(tile.at[m]), kLanes, Largest{}) / largest_fp8(sink.format));
    scales[m] = e8m0_reciprocal(byte);
    if (thread % kLanes == 0)
      bytes[offset_in_scale_tile(thread / kSidePacks * kPack + m, thread % kSidePacks / kLanes)] =
          static_cast<std::uint8_t>(byte);
  }
  __syncthreads();
  write_scale_tile(sink, place.down, place.across, bytes);
}

/// scales[n] of column n.
template <typename T>
__device__ void scale_mx_columns(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink,
                                 float (&scales)[kPack]) {
  constexpr int kBlocks = static_cast<int>(kBlock / kMxBlock), kWarps = kBlockCastWarps / kBlocks;
  static_assert(kWarps * kWarpRows == kMxBlock);
  __shared__ float amaxes[kBlockCastWarps][kBlock];
  __shared__ float found[kBlocks][kBlock];
  __shared__ __align__(4) std::uint8_t bytes[kScaleTileBytes];
  const int thread = static_cast<int>(threadIdx.x), first = thread % kSidePacks * kPack;
  find_column_amaxes(tile, amaxes);
  for (int i = thread; i < kBlocks * kBlock; i += kBlockCastThreads) {
    const int block = i / static_cast<int>(kBlock), column = i % static_cast<int>(kBlock);
    float amax = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) amax = fmaxf(amax, amaxes[kWarps * block + warp][column]);
    const unsigned byte = e8m0_byte(amax / largest_fp8(sink.format));
    found[block][column] = e8m0_reciprocal(byte);
    bytes[offset_in_scale_tile(column, block)] = static_cast<std::uint8_t>(byte);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kPack; ++n) scales[n] = found[thread / 32 / kWarps][first + n];
  write_scale_tile(sink, place.across, place.down, bytes);
}

/// Writes a tile of words that lie in shared memory: word w of transposed row n at [n * kSideWords + (w ^ swizzle(n))], so that neither
/// those who write them nor those who read them meet at one bank (two of a warp's lanes at most).
__device__ inline int swizzle(int n) {
  return n / kPack * 2;
}
template <typename AnySink>
__device__ void write_transposed_words(const AnySink& sink, const unsigned* words, const TilePlace& place) {
  const std::int64_t row = place.down * kBlock, column = place.across * kBlock;
  const int width = static_cast<int>(min(place.cols - column, std::int64_t{kBlock}));
  const int height = static_cast<int>(min(place.rows - row, std::int64_t{kBlock}));
  std::uint8_t* const begin = sink.transposed.address(column, row);
  if (sink.transposed_run == 16 && height == kBlock) {
    constexpr int kRuns = kSideWords / 4, kAtOnce = kBlockCastThreads / kRuns;
    const int first = static_cast<int>(threadIdx.x) / kRuns, run = static_cast<int>(threadIdx.x) % kRuns;
    std::uint8_t* to = begin + first * sink.transposed.stride + run * 16;
    for (int n = first; n < width; n += kAtOnce, to += kAtOnce * sink.transposed.stride) {
      auto four =
          *reinterpret_cast<const Pack<unsigned, 4>*>(words + n * kSideWords + (4 * run ^ (swizzle(n) & ~3)));
      if (swizzle(n) & 2) four = {{four.at[2], four.at[3], four.at[0], four.at[1]}};
      *reinterpret_cast<Pack<unsigned, 4>*>(to) = four;
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < width * kSideWords; i += kBlockCastThreads) {
    const int n = i / kSideWords, w = i % kSideWords, rows = min(height - 4 * w, 4);
    if (rows <= 0) continue;
    const unsigned word = words[n * kSideWords + (w ^ swizzle(n))];
    std::uint8_t* const to = begin + n * sink.transposed.stride + 4 * w;
    if (rows == 4 && sink.transposed_run >= 4) {
      *reinterpret_cast<unsigned*>(to) = word;
    } else {
      for (int m = 0; m < rows; ++m) to[m] = static_cast<std::uint8_t>(word >> 8 * m);
    }
  }
}

/// Codes of the thread's numbers n, n + 1, ... of row m, the first in the lowest byte; 0 for what lies outside the matrix.
template <bool kPacks, typename T>
__device__ unsigned cast_four(const ThreadTile<T>& tile, int m, int n, Fp8 format, const float (&scales)[4],
                              CastTrace& trace) {
  if (m >= tile.rows || n >= tile.cols) return 0;
  float x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = tile(m, n + i);
  unsigned word[1] = {};
  if (kPacks || n + 4 <= tile.cols) {
    trace.cast(format, scales, x, word);
  } else {
    for (int i = 0; n + i < tile.cols; ++i)
      word[0] |= static_cast<unsigned>(trace.cast({format, scales[i]}, x[i])) << 8 * i;
  }
  return word[0];
}

/// Codes of the thread's row m.
template <bool kPacks, typename T>
__device__ Pack<unsigned, kPack / 4> cast_row(const ThreadTile<T>& tile, int m, Fp8 format,
                                              const float (&scales)[kPack], CastTrace& trace) {
  Pack<unsigned, kPack / 4> written{};
  if constexpr (kPacks && kPairs<T, kPack>) {
    if (m < tile.rows && tile.cols > 0) trace.cast(format, scales, tile.at[m], written.at);
  } else {
#pragma unroll
    for (int w = 0; w < kPack / 4; ++w) {
      const float of_four[] = {scales[4 * w], scales[4 * w + 1], scales[4 * w + 2], scales[4 * w + 3]};
      written.at[w] = cast_four<kPacks>(tile, m, 4 * w, format, of_four, trace);
    }
  }
  return written;
}

/// Casts the tile into one sink. By all threads of the block.
template <BlockShape kShape, bool kPacks, typename T>
__device__ void cast_tile(const ThreadTile<T>& tile, const TilePlace& place, const BlockSink& sink) {
  __shared__ __align__(16) unsigned transposed[kBlock * kSideWords];
  float scales[kPack];
  if constexpr (kShape == BlockShape::row) scale_rows(tile, place, sink, scales);
  if constexpr (kShape == BlockShape::column) scale_columns(tile, place, sink, scales);
  if constexpr (kShape == BlockShape::square) scale_square(tile, place, sink, scales);
  if constexpr (kShape == BlockShape::mx_row) scale_mx_rows(tile, place, sink, scales);
  if constexpr (kShape == BlockShape::mx_column) scale_mx_columns(tile, place, sink, scales);
  constexpr bool kByColumns = kShape == BlockShape::column || kShape == BlockShape::mx_column;
  const Fp8 format = is_mx(kShape) ? sink.format : Fp8::e4m3;

  CastTrace trace;
  unsigned words[kPack / 4][kPack];
#pragma unroll
  for (int m = 0; m < kPack; ++m) {
    float of_row[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) of_row[i] = scales[kByColumns ? i : m];
    const Pack<unsigned, kPack / 4> written = cast_row<kPacks>(tile, m, format, of_row, trace);
#pragma unroll
    for (int w = 0; w < kPack / 4; ++w) words[w][m] = written.at[w];
    if (m >= tile.rows || tile.cols == 0) continue;
    if (kByColumns && !sink.bytes.data) continue;
    std::uint8_t* const to = sink.bytes.address(tile.row + m, tile.column);
    if constexpr (kPacks) {
      *reinterpret_cast<Pack<unsigned, kPack / 4>*>(to) = written;
    } else {
      for (int n = 0; n < tile.cols; ++n) to[n] = static_cast<std::uint8_t>(written.at[n / 4] >> 8 * (n % 4));
    }
  }
  record_warp(nullptr, sink.counters, trace);
  if (blockIdx.x == 0 && threadIdx.x == 0 && sink.counters)
    atomicAdd(sink.counters + kCastElements, static_cast<unsigned long long>(place.rows * place.cols));
  if (!sink.transposed.data) return;

  const int thread = static_cast<int>(threadIdx.x);
  const int first = thread % kSidePacks * kPack, group = thread / kSidePacks;
#pragma unroll
  for (int w = 0; w < kPack / 4; ++w) {
#pragma unroll
    for (int h = 0; h < kPack / 4; ++h) {
      unsigned square[4] = {words[w][4 * h], words[w][4 * h + 1], words[w][4 * h + 2], words[w][4 * h + 3]};
      transpose_words(square);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = first + 4 * w + i;
        transposed[n * kSideWords + ((kPack / 4 * group + h) ^ swizzle(n))] = square[i];
      }
    }
  }
  __syncthreads();
  write_transposed_words(sink, transposed, place);
}

/// One block per tile; sinks[i] gets a cast in blocks of kShapes[i].
template <bool kPacks, typename T, BlockShape... kShapes>
__global__ void __launch_bounds__(kBlockCastThreads, 3)
    cast_blocks(Matrix<T> x, std::array<BlockSink, sizeof...(kShapes)> sinks, std::int64_t rows,
                std::int64_t cols) {
  const std::int64_t across = (cols + kBlock - 1) / kBlock;
  const TilePlace place{blockIdx.x / across, blockIdx.x % across, rows, cols};
  const int thread = static_cast<int>(threadIdx.x);
  const ThreadTile<T> tile =
      load_tile<kPacks>(x, place.down * kBlock + thread / kSidePacks * kPack,
                        place.across * kBlock + thread % kSidePacks * kPack, rows, cols);
  int next = 0;
  (cast_tile<kShapes, kPacks>(tile, place, sinks[next++]), ...);
}

}  // namespace quaver::cuda
