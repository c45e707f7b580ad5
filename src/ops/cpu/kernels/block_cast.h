/// The parts of a cast in blocks (Backend::quantize) that run over the columns of a row.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

/// An element type: the code of a magnitude is (steps between neighbours) + (binades above the smallest) 2^mantissa_bits.
struct CodeFormat {
  int mantissa_bits = 0;
  std::uint32_t smallest_exponent = 0;  ///< field of FP32, of the smallest normal number
  float largest = 0;
  std::uint8_t largest_code = 0, sign = 0, nan = 0;
};

/// What a row counted.
struct CodeCounts {
  std::int64_t saturated = 0, underflowed = 0, nan = 0, infinite = 0, zeros = 0;
};

struct BlockCastKernels {
  /// to[n] = x[n] in FP32.
  void (*widen)(Real real, const void* x, std::int64_t cols, float* to);
  /// bits[n] = max(bits[n], the bits of |x[n]|): NaN beats every number.
  void (*raise_amax)(const float* x, std::int64_t cols, std::uint32_t* bits);
  /// Turns 16 rows of FP32 numbers, `stride` apart, by the Hadamard matrix; bit i of `signs` negates row i.
  void (*hadamard)(float* rows, std::int64_t stride, std::int64_t cols, std::uint32_t signs);
  /// uniform[n] of element first + n, as CastNoise says, from the returned place in `scratch` of cols + kUniformSlack.
  const float* (*uniform)(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::int64_t cols,
                          float* scratch);
  /// codes[n] = encode(x[n] * multiplier[n]); `uniform` null: to nearest.
  void (*encode)(const CodeFormat& format, const float* x, const float* multiplier, const float* uniform,
                 std::int64_t cols, std::uint8_t* codes, CodeCounts& counts);
  /// values[n] = bf16(table[codes[n]] * scale[n]).
  void (*decode)(const float* table, const std::uint8_t* codes, const float* scale, std::int64_t cols,
                 std::uint16_t* values);
};

/// Room that `uniform` needs beside `cols` numbers.
constexpr std::int64_t kUniformSlack = 128;

}  // namespace quaver::cpu
