/// The ceiling that GEMMs are measured against.
#pragma once

namespace quaver::cpu {

/// Floating-point operations per second of `threads` threads that multiply and add in registers for about
/// `seconds`, as a BF16 GEMM of the chosen level does.
double measure_bf16_peak(int threads, double seconds);

}  // namespace quaver::cpu
