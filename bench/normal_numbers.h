/// Operands of benchmarks.
#pragma once

#include <cstdint>

#include "quaver/backend.h"

namespace quaver {

/// A matrix of normal numbers in BF16; each `stream` has its own.
inline Tensor normal(Backend& backend, std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
  const Tensor real = backend.allocate(DType::f32, {rows, cols}),
               values = backend.allocate(DType::bf16, {rows, cols});
  backend.fill_normal(real, 0, 1, 1, stream);
  backend.convert(real, values);
  return values;
}

}  // namespace quaver
