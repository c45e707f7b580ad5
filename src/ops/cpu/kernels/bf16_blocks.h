/// BF16 to FP8 with a power of two per block, 64 numbers at once, for levels that have instructions for it.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels/block_cast.h"

namespace quaver::cpu {

/// Bits of BF16's mantissa that a code drops.
constexpr int dropped_bits(bool e5m2) {
  return e5m2 ? 5 : 4;
}

/// What is added to the bits of a magnitude |x| so that the bits above `dropped_bits` are the code of |x| 2^exponent, but for the
/// tie to even: the difference of the exponents' biases and half a last place less one.
constexpr std::int16_t code_offset(bool e5m2, int exponent) {
  return static_cast<std::int16_t>(128 * (exponent + (e5m2 ? 15 : 7) - 127) +
                                   (1 << (dropped_bits(e5m2) - 1)) - 1);
}

/// Exponents for which offsets fit, and BF16's denormals underflow.
constexpr int kLeastExponent = -120, kLargestExponent = 109;

constexpr std::int64_t kSpreadSlack = 32;

struct Bf16BlockKernels {
  /// False: the level has none of the others.
  bool exist = false;
  /// largest[n] = max(largest[n], |x[n]|), as bits: NaN beats every number.
  void (*raise)(const std::uint16_t* x, std::int64_t cols, std::uint16_t* largest) = nullptr;
  /// largest[i] = max of |x[i size]| to |x[i size + size - 1]|; the last may have fewer.
  void (*largest_of_groups)(const std::uint16_t* x, std::int64_t cols, std::int64_t size,
                            std::uint16_t* largest) = nullptr;
  /// to[n] = of_groups[n / size]; writes up to kSpreadSlack numbers more.
  void (*spread)(const std::int16_t* of_groups, std::int64_t cols, std::int64_t size,
                 std::int16_t* to) = nullptr;
  /// codes[m][n] = encode(x[m][n] 2^e), where offset[n] = code_offset(e5m2, e); x is finite, no result saturates. `streams`:
  /// past the caches where lines are whole; then `finish` comes before other threads read the codes.
  void (*encode)(bool e5m2, Extent extent, ConstRows x, const std::int16_t* offset, bool streams,
                 std::uint8_t* codes, std::int64_t stride, CodeCounts& counts) = nullptr;
  void (*finish)() = nullptr;
};

}  // namespace quaver::cpu
