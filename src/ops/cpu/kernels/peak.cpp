#include "ops/cpu/kernels/peak.h"

#include "ops/cpu/kernels/microkernel.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

// Enough independent sums to hide the latency of the instruction, few enough to stay in registers.
constexpr int kSums = 12;

double bf16_peak(std::int64_t iterations) {
  const Vector a = broadcast(1), b = broadcast(2);
  Vector sum[kSums];
#pragma GCC unroll 12
  for (int s = 0; s < kSums; ++s)
    sum[s] = broadcast(static_cast<float>(s));  // equal sums would be computed once
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

float read(const float* data, std::int64_t count) {
  constexpr int kStreams = 4;  // hide the latency of the additions
  Vector sum[kStreams] = {};
  for (std::int64_t i = 0; i + kStreams * kVector <= count; i += kStreams * kVector) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s)
      sum[s] += *reinterpret_cast<const UnalignedVector*>(data + i + s * kVector);
  }
  return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
}

}  // namespace

const PeakKernels peak_kernels = {.bf16 = bf16_peak, .read = read};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
