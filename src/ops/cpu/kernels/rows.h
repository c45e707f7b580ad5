/// Real matrices as kernels see them: pointers, strides in elements, and the type of all real operands of a
/// call.
#pragma once

#include <cstdint>

namespace quaver::cpu {

enum class Real { f32, bf16 };

struct Extent {
  std::int64_t rows = 0, cols = 0;
};

struct ConstRows {
  const void* data = nullptr;
  std::int64_t stride = 0;
};

struct Rows {
  void* data = nullptr;
  std::int64_t stride = 0;
};

/// What one piece of a cast counted, to be combined over pieces (a maximum and integer sums: exact in any
/// order).
struct CastCounts {
  std::int32_t amax_bits = 0;  ///< of the largest |x| that is not NaN
  std::int64_t saturated = 0, underflowed = 0, nan = 0, infinite = 0, zeros = 0;
};

/// Where a producer stores its result: in the call's real type (`values` null: not), and as FP8 (`bytes`
/// null: not).
struct ProducerRows {
  void* values = nullptr;
  std::int64_t values_stride = 0;
  std::uint8_t* bytes = nullptr;
  std::int64_t bytes_stride = 0;
  bool e5m2 = false;
  /// The bytes are more than the caches hold: lines are written past them, without being read first.
  bool streams = false;
  float scale = 1;
  CastCounts* counts = nullptr;  ///< of this piece; present with `bytes`
};

}  // namespace quaver::cpu
