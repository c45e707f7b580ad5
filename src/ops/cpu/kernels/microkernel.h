/// The innermost loops of all matrix products: a panel of rows times a panel of columns, sums in registers.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <cstdint>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

// kRows * kMaxVectors sums, kMaxVectors columns and one broadcast fill the level's registers.
#if defined(__AVX512F__)
constexpr int kVector = 16, kMaxVectors = 3, kRows = 8;
#elif defined(__AVX2__)
constexpr int kVector = 8, kMaxVectors = 3, kRows = 4;
#else
constexpr int kVector = 4, kMaxVectors = 2, kRows = 4;
#endif
constexpr int kPanelColumns = kVector * kMaxVectors;

typedef float Vector __attribute__((vector_size(kVector * 4), may_alias));
typedef float UnalignedVector __attribute__((vector_size(kVector * 4), may_alias, aligned(4)));

__attribute__((always_inline)) inline Vector broadcast(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX2__)
  return _mm256_set1_ps(value);
#else
  return Vector{value, value, value, value};
#endif
}

/// sum += a * b, fused where the level can. Products of FP8 values are exact, so for them it makes no
/// difference.
struct MultiplyAdd {
  static constexpr int kStepSize = 1;
  struct Scope {};
  __attribute__((always_inline)) static void apply(Vector& sum, Vector a, Vector b) {
#if defined(__AVX512F__)
    sum = _mm512_fmadd_ps(a, b, sum);
#elif defined(__AVX2__)
    sum = _mm256_fmadd_ps(a, b, sum);
#else
    sum = sum + a * b;
#endif
  }
};

#if defined(__AVX512BF16__)

/// sum = a.low * b.low + (sum + a.high * b.high), each rounded once, denormals flushed. As inline assembly
/// because g++ 12 moves the sums to and from memory when it is given the intrinsic in some surroundings.
struct PairDot {
  static constexpr int kStepSize = 2;
  struct Scope {};  // flushes whatever MXCSR says
  __attribute__((always_inline)) static void apply(Vector& sum, Vector a, Vector b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
  }
};
using Bf16Math = PairDot;
using Fp8Math = PairDot;

#elif defined(__FMA__)

/// While it lives, denormal operands count as zero and denormal results become zero (MXCSR's DAZ and FTZ), as
/// BF16 products ask.
class DenormalsFlushed {
 public:
  DenormalsFlushed() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~DenormalsFlushed() { _mm_setcsr(saved_); }
  DenormalsFlushed(const DenormalsFlushed&) = delete;
  DenormalsFlushed& operator=(const DenormalsFlushed&) = delete;

 private:
  unsigned saved_;
};

struct FlushedFusedMultiplyAdd : MultiplyAdd {
  using Scope = DenormalsFlushed;
};
using Bf16Math = FlushedFusedMultiplyAdd;
using Fp8Math = MultiplyAdd;

#else

/// sum = fma(a, b, sum) of widened BF16 numbers, denormal operands and results flushed, without a fused
/// instruction. The product is exact in double, and where the sum is not, its 53 bits are no midpoint of two
/// FP32 numbers (16 + 24 bits, and a gap only where it cannot matter): rounding twice rounds right.
struct FlushedMultiplyAdd {
  static constexpr int kStepSize = 1;
  struct Scope {};
  static void apply(Vector& sum, Vector a, Vector b) {
    for (int i = 0; i < kVector; ++i) sum[i] = flushed(double(sum[i]) + operand(a[i]) * operand(b[i]));
  }

 private:
  static double operand(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysign(0.0, x) : x; }
  /// Processors call a result denormal if it is one after rounding to 24 bits: everything below 2^-126 -
  /// 2^-151.
  static float flushed(double x) {
    return __builtin_fabs(x) < 0x1p-126 - 0x1p-151 ? float(__builtin_copysign(0.0, x)) : float(x);
  }
};
using Bf16Math = FlushedMultiplyAdd;
using Fp8Math = MultiplyAdd;

#endif

/// sums[r * stride + c] = (carry ? sums[r * stride + c] : 0) + product of `steps` packed steps. `sums` may be
/// unaligned.
template <class Math, int Rows, int Vectors>
__attribute__((noinline)) void multiply_panel(const float* a, const float* b, std::int64_t steps, float* sums,
                                              std::int64_t stride, bool carry) {
  Vector sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] =
          carry ? *reinterpret_cast<const UnalignedVector*>(sums + r * stride + v * kVector) : Vector{};
    }
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    Vector columns[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) columns[v] = *reinterpret_cast<const Vector*>(b + v * kVector);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vector row = broadcast(a[r]);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) Math::apply(sum[r][v], row, columns[v]);
    }
    a += kRows;
    b += Vectors * kVector;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      *reinterpret_cast<UnalignedVector*>(sums + r * stride + v * kVector) = sum[r][v];
    }
  }
}

template <class Math, int Rows>
void multiply_panel(int vectors, const float* a, const float* b, std::int64_t steps, float* sums,
                    std::int64_t stride, bool carry) {
  if (vectors == 1) return multiply_panel<Math, Rows, 1>(a, b, steps, sums, stride, carry);
  if (vectors == 2) return multiply_panel<Math, Rows, 2>(a, b, steps, sums, stride, carry);
  return multiply_panel<Math, Rows, kMaxVectors>(a, b, steps, sums, stride, carry);
}

/// The same for the first `rows` of a panel: a few rows more may be computed, but never more than kRows.
template <class Math>
void multiply_panel(std::int64_t rows, int vectors, const float* a, const float* b, std::int64_t steps,
                    float* sums, std::int64_t stride, bool carry) {
  [[maybe_unused]] const typename Math::Scope scope;
  if (rows == 1) return multiply_panel<Math, 1>(vectors, a, b, steps, sums, stride, carry);
  if (rows <= kRows / 2) return multiply_panel<Math, kRows / 2>(vectors, a, b, steps, sums, stride, carry);
  return multiply_panel<Math, kRows>(vectors, a, b, steps, sums, stride, carry);
}

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Cuts a group of columns into panels of nearly equal width, at most kMaxVectors vectors: calls body(first
/// column, vectors).
template <class Body>
void for_column_panels(std::int64_t columns, const Body& body) {
  const std::int64_t vectors = (columns + kVector - 1) / kVector;
  const std::int64_t panels = (vectors + kMaxVectors - 1) / kMaxVectors;
  for (std::int64_t p = 0; p < panels; ++p) {
    const std::int64_t first = p * vectors / panels;
    body(first * kVector, static_cast<int>((p + 1) * vectors / panels - first));
  }
}

/// sums[r * stride + c] (+)= product of packed rows and a packed group of columns; rows and columns are
/// padded in `sums`.
template <class Math>
void multiply_block(const float* a, const float* b, std::int64_t rows, std::int64_t columns,
                    std::int64_t steps, float* sums, std::int64_t stride, bool carry) {
  for_column_panels(columns, [&](std::int64_t column, int vectors) {
    for (std::int64_t row = 0; row < rows; row += kRows) {
      multiply_panel<Math>(rows - row, vectors, a + row * steps, b + column * steps, steps,
                           sums + row * stride + column, stride, carry);
    }
  });
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
