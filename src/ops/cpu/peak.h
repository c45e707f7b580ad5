/// The ceilings that operations are measured against.
#pragma once

#include <cstdint>
#include <vector>

#include "quaver/products.h"

namespace quaver::cpu {

/// Floating-point operations per second of `threads` threads that multiply and add in registers for about
/// `seconds`, as a BF16 GEMM of the chosen level, with these products, does.
double measure_bf16_peak(int threads, double seconds, Products products = Products::exact);

/// Bytes per second that threads together read from memory, each a stretch of its own larger than the caches.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(int threads);
  /// Reads for about `seconds`.
  double measure(double seconds);

 private:
  int threads_;
  std::vector<std::vector<float>> stretches_;
  std::vector<std::int64_t> positions_;
};

}  // namespace quaver::cpu
