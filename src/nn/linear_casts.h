/// How a Linear casts under delayed scaling and reads operands, for the files that implement it.
#pragma once

#include "quaver/backend.h"
#include "quaver/linear.h"

namespace quaver {

inline Quantizer make_quantizer(const ScalingSlot& slot, DType format, bool leave_trace) {
  Quantizer quantizer{format, slot.scale, {}, {}};
  if (leave_trace) {
    quantizer.amax = slot.amax_history.slice(0, 1);
    quantizer.counters = slot.counters;
  }
  return quantizer;
}

/// Which GEMMs read a quantised operand of this module: where they want operands contiguous along the contraction, each reads
/// bytes of its own.
enum class ReadBy { fprop, gradient, both };

inline QuantizedTensor allocate_quantized(Backend& backend, DType format, std::int64_t rows,
                                          std::int64_t cols, ReadBy read_by = ReadBy::both) {
  const bool transposes = backend.needs_transposed_fp8();
  QuantizedTensor q;
  if (!transposes || read_by != ReadBy::gradient) q.bytes = backend.allocate(format, {rows, cols});
  if (transposes && read_by != ReadBy::fprop) q.transposed = backend.allocate(format, {cols, rows});
  q.scale_inv = backend.allocate(DType::f32, {1});
  return q;
}

struct Linear::Reading {
  enum class Kind { real, delayed, cast } kind = Kind::real;
  OperandCast cast = {};  ///< of Kind::cast
};

}  // namespace quaver
