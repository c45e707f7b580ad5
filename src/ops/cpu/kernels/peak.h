/// The ceilings that operations are measured against.
#pragma once

#include <cstdint>

namespace quaver::cpu {

struct PeakKernels {
  /// Multiplies and adds in registers as this level's BF16 GEMM does, touching no memory. Returns the number
  /// of floating-point operations.
  double (*bf16)(std::int64_t iterations);
  /// Reads memory once, in order; the result depends on all of it.
  float (*read)(const float* data, std::int64_t count);
};

namespace baseline {
extern const PeakKernels peak_kernels;
}
namespace avx2 {
extern const PeakKernels peak_kernels;
}
namespace avx512 {
extern const PeakKernels peak_kernels;
}

}  // namespace quaver::cpu
