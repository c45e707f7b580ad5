/// Included before kernels that are compiled once more for bench_counters: what their encoders count by is a constant, so
/// the compiler drops the comparisons that only count. Bytes and amaxes stay.
#pragma once

#include <immintrin.h>

#define _mm_popcnt_u32(mask) 0
#define __builtin_popcountll(mask) 0

// The tables whose headers declare them for the program's own levels alone.
namespace quaver::cpu {
struct AttentionKernels;
struct GemmKernels;
struct PeakKernels;
namespace uncounted {
extern const AttentionKernels attention_kernels;
extern const GemmKernels gemm_kernels;
extern const PeakKernels peak_kernels;
}  // namespace uncounted
}  // namespace quaver::cpu
