/// Where a result goes on the device: in high precision, as FP8 bytes, as transposed ones, or several of them.
#pragma once

#include <cstdint>

#include "ops/cuda/cast_trace.cuh"
#include "quaver/scaling.h"

namespace quaver::cuda {

enum SinkWrites : std::int32_t { kWritesValues = 1, kQuantizes = 2, kWritesBytes = 4, kWritesTransposed = 8 };

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
  std::int32_t writes;          ///< writes_of: a test of a bit is one instruction, of a pointer two
  std::int64_t transposed_run;  ///< bytes of a row of `transposed` that may be written at once

  __host__ __device__ bool writes_values() const { return (writes & kWritesValues) != 0; }
  __host__ __device__ bool quantizes() const { return (writes & kQuantizes) != 0; }
  __host__ __device__ bool writes_bytes() const { return (writes & kWritesBytes) != 0; }
  __host__ __device__ bool writes_transposed() const { return (writes & kWritesTransposed) != 0; }
  __device__ CastScale cast_scale() const {
    return quantizes() ? cuda::cast_scale(format, *scale) : CastScale{};
  }
};

/// Bytes that may be moved at once wherever a row of a matrix is divided into as many: 16, 4 or 1.
inline std::int32_t run_of(const Matrix<std::uint8_t>& bytes) {
  for (const int run : {16, 4}) {
    if (bytes.stride % run == 0 && reinterpret_cast<std::uintptr_t>(bytes.data) % run == 0) return run;
  }
  return 1;
}

/// What Sink::writes is, by the pointers that are there.
template <typename T>
std::int32_t writes_of(const Sink<T>& sink) {
  return (sink.values.data ? kWritesValues : 0) | (sink.scale ? kQuantizes : 0) |
         (sink.bytes.data ? kWritesBytes : 0) | (sink.transposed.data ? kWritesTransposed : 0);
}

template <typename T>
Sink<T> sink_of(const Output& output) {
  Sink<T> sink{};
  sink.values = matrix_of<T>(output.values);
  if (output.quantized.defined()) {
    const QuantizedTensor& quantized = output.quantized;
    sink.bytes = matrix_of<std::uint8_t>(quantized.bytes);
    sink.transposed = matrix_of<std::uint8_t>(quantized.transposed);
    sink.scale_inv = quantized.scale_inv.template data<float>();
    sink.scale = output.quantizer.scale.data<float>();
    if (output.quantizer.amax) sink.amax = output.quantizer.amax.data<float>();
    if (output.quantizer.counters) sink.counters = output.quantizer.counters.data<unsigned long long>();
    sink.format = fp8_of(output.quantizer.format);
    sink.transposed_run = run_of(sink.transposed);
  }
  sink.writes = writes_of(sink);
  return sink;
}
inline bool packs(const Output& output) {
  return packs(output.values) && packs(output.quantized.bytes);
}

/// What a warp saw, by all its lanes.
template <typename T>
__device__ void record(const Sink<T>& sink, const CastTrace& trace) {
  record_warp(sink.amax, sink.counters, trace);
}

/// What concerns the whole matrix: written by one thread.
template <typename T>
__device__ void record_once(const Sink<T>& sink, std::int64_t elements) {
  *sink.scale_inv = 1.0f / *sink.scale;
  if (sink.counters) atomicAdd(sink.counters + kCastElements, static_cast<unsigned long long>(elements));
}

}  // namespace quaver::cuda
