/// The numbers that FP8 bytes stand for, whichever of their two forms is there.
#pragma once

#include <vector>

#include "quaver/backend.h"

namespace quaver::testing {

/// Without the scale, in row-major order.
inline std::vector<float> codes_of(Backend& backend, const QuantizedTensor& q) {
  if (q.bytes) return download(backend, q.bytes);
  const std::vector<float> columns = download(backend, q.transposed);
  const auto rows = static_cast<std::size_t>(q.transposed.cols()),
             cols = static_cast<std::size_t>(q.transposed.rows());
  std::vector<float> codes;
  for (std::size_t m = 0; m < rows; ++m) {
    for (std::size_t n = 0; n < cols; ++n) codes.push_back(columns[n * rows + m]);
  }
  return codes;
}

}  // namespace quaver::testing
