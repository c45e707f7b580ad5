/// The one kernel behind every operation whose result may be cast: a function of (row, column), computed in
/// tiles, written in high precision, as FP8, and as transposed FP8, with amax and counters, in one pass.
#pragma once

#include <array>
#include <cstdint>

#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"
#include "quaver/scaling.h"

namespace quaver::cuda {

/// An Output for device code; null where absent.
template <typename T>
struct Sink {
  Matrix<T> values;
  Matrix<std::uint8_t> bytes, transposed;
  float* scale_inv;
  const float* scale;
  float* amax;
  unsigned long long* counters;
  Fp8 format;
  bool transposed_packs;  ///< rows of `transposed` may be written 4 bytes at a time

  __device__ bool quantizes() const { return bytes.data != nullptr; }
};

template <typename T>
Sink<T> sink_of(const Output& output) {
  Sink<T> sink{};
  sink.values = matrix_of<T>(output.values);
  if (!output.quantized.defined()) return sink;
  const auto& [bytes, transposed, scale_inv] = output.quantized;
  sink.bytes = matrix_of<std::uint8_t>(bytes);
  sink.transposed = matrix_of<std::uint8_t>(transposed);
  sink.scale_inv = scale_inv.template data<float>();
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

constexpr int kTile = 64;  ///< rows and columns
constexpr int kTileThreads = 256;
constexpr int kTilePitch = kTile + 4;  ///< of a column's bytes in shared memory: columns start in other banks

/// What a thread saw of its elements before a cast. Counts of a warp's share of a tile fit 10 bits each.
struct CastTrace {
  float amax = 0;
  unsigned counts = 0;  ///< saturated | underflowed << 10 | NaN << 20

  __device__ std::uint8_t cast(Fp8 format, float scale, float x) {
    const float scaled = x * scale;
    const std::uint8_t byte = fp8_byte(format, scaled);
    amax = fmaxf(amax, fabsf(x));  // ignores NaN
    counts += static_cast<unsigned>(fabsf(scaled) > largest_fp8(format)) +
              (static_cast<unsigned>(x != 0 && (byte & 0x7F) == 0) << 10) +
              (static_cast<unsigned>(x != x) << 20);
    return byte;
  }
};
static_assert(kTile * kTile * 32 / kTileThreads < 1024);

/// Adds a warp's trace to the running totals. Bits of non-negative floats order like the floats. Reading
/// first keeps most warps from the atomics, all of which meet at one address.
template <typename T>
__device__ void record(const Sink<T>& sink, const CastTrace& trace) {
  const float amax = warp_reduce(trace.amax, Largest{});
  const unsigned counts = warp_reduce(trace.counts, Add{});
  if (threadIdx.x % 32 != 0) return;
  if (sink.amax && amax > *static_cast<volatile float*>(sink.amax)) {
    atomicMax(reinterpret_cast<int*>(sink.amax), __float_as_int(amax));
  }
  if (!sink.counters) return;
  const auto add = [&](CastCounter counter, unsigned count) {
    if (count) atomicAdd(sink.counters + counter, static_cast<unsigned long long>(count));
  };
  add(kCastSaturated, counts & 1023);
  add(kCastUnderflowed, counts >> 10 & 1023);
  add(kCastNan, counts >> 20);
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
  const int width = static_cast<int>(min(cols - column, std::int64_t{kTile}));
  const int height = static_cast<int>(min(rows - row, std::int64_t{kTile}));
  if (by_four && height == kTile) {
    for (int i = static_cast<int>(threadIdx.x); i < width * kTile / 4; i += kTileThreads) {
      const int n = i / (kTile / 4), m = i % (kTile / 4) * 4;
      *reinterpret_cast<unsigned*>(to.address(column + n, row + m)) =
          *reinterpret_cast<const unsigned*>(tile + n * kTilePitch + m);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < width * kTile; i += kTileThreads) {
    const int n = i / kTile, m = i % kTile;
    if (m < height) *to.address(column + n, row + m) = tile[n * kTilePitch + m];
  }
}

/// f(m, n, results) sets results[output][i] for the elements (m, n + i), i < N. One block per tile.
template <int N, int kOutputs, typename T, typename F>
__global__ void __launch_bounds__(kTileThreads)
    produce_tile(F f, std::array<Sink<T>, kOutputs> sinks, std::int64_t rows, std::int64_t cols) {
  __shared__ __align__(16) std::uint8_t tiles[kOutputs][kTile * kTilePitch];
  const std::int64_t across = (cols + kTile - 1) / kTile;
  const std::int64_t row = blockIdx.x / across * kTile, column = blockIdx.x % across * kTile;
  CastTrace traces[kOutputs];
  float scales[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) scales[o] = sinks[o].quantizes() ? *sinks[o].scale : 0.0f;

  constexpr int kPacksPerRow = kTile / N;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kPacksPerRow; i += kTileThreads) {
    const int m = i / kPacksPerRow, n = i % kPacksPerRow * N;
    if (row + m >= rows || column + n >= cols) continue;
    float results[kOutputs][N];
    f(row + m, column + n, results);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const Sink<T>& sink = sinks[o];
      if (sink.values.data) sink.values.store(row + m, column + n, results[o]);
      if (!sink.quantizes()) continue;
      Pack<std::uint8_t, N> bytes;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        bytes.at[j] = traces[o].cast(sink.format, scales[o], as_float(round_as<T>(results[o][j])));
        if (sink.transposed.data) tiles[o][(n + j) * kTilePitch + m] = bytes.at[j];
      }
      *reinterpret_cast<Pack<std::uint8_t, N>*>(sink.bytes.address(row + m, column + n)) = bytes;
    }
  }
  __syncthreads();
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const Sink<T>& sink = sinks[o];
    if (!sink.quantizes()) continue;
    if (sink.transposed.data) {
      write_transposed(sink.transposed, sink.transposed_packs, tiles[o], row, column, rows, cols);
    }
    record(sink, traces[o]);
    if (blockIdx.x == 0 && threadIdx.x == 0) record_once(sink, rows * cols);
  }
}

/// A matrix without elements has no tiles, but a scale_inv.
template <typename T>
__global__ void produce_nothing(Sink<T> sink) {
  record_once(sink, 0);
}

/// Launches produce_tile for a matrix of the given size. `pack`: f's own operands can be read in packs.
template <typename T, int kOutputs, typename F>
void produce(const char* name, const F& f, const std::array<Output, kOutputs>& outputs, std::int64_t rows,
             std::int64_t cols, bool pack, Stream stream) {
  std::array<Sink<T>, kOutputs> sinks{};
  for (int o = 0; o < kOutputs; ++o) {
    sinks[o] = sink_of<T>(outputs[o]);
    pack = pack && packs(outputs[o]);
  }
  const std::int64_t tiles = blocks_for(rows, kTile) * blocks_for(cols, kTile);
  if (tiles == 0) {
    for (const auto& sink : sinks) {
      if (sink.bytes.data) launch(name, produce_nothing<T>, {1, 1}, stream, sink);
    }
    return;
  }
  const auto kernel = pack ? produce_tile<kPack, kOutputs, T, F> : produce_tile<1, kOutputs, T, F>;
  launch(name, kernel, {tiles, kTileThreads}, stream, f, sinks, rows, cols);
}

}  // namespace quaver::cuda
