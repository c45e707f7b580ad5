#include "ops/cpu/kernels/peak.h"

#include "ops/cpu/kernels/microkernel.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

// Enough independent sums to hide the latency of the instruction, few enough to stay in registers.
constexpr int kSums = 12;

double bf16_peak(std::int64_t iterations) {
  const Vector a = broadcast(1), b = broadcast(2);
  Vector sum[kSums] = {};
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int s = 0; s < kSums; ++s) Fp8Math::apply(sum[s], a, b);
    asm volatile("" ::: "memory");  // iterations must not be combined
  }
  volatile float used = 0;
#pragma GCC unroll 12
  for (int s = 0; s < kSums; ++s) used = used + sum[s][0];
  return 2.0 * Fp8Math::kStepSize * kVector * kSums * static_cast<double>(iterations);
}

}  // namespace

const PeakKernels peak_kernels = {.bf16 = bf16_peak};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
