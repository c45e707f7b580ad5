/// The innermost loops of all matrix products: a panel of rows times a panel of columns, sums in registers.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <cstdint>
#ifdef __SSE2__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include "ops/cpu/kernels/tiles.h"
#endif

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

// With tiles: 2 x 2 tiles of sums. Else kRows * kMaxVectors sums, kMaxVectors columns and one broadcast fill the level's registers.
#if defined(__AMX_BF16__)
constexpr int kVector = 16, kMaxVectors = 2, kRows = 32;
#elif defined(__AVX512F__)
constexpr int kVector = 16, kMaxVectors = 3, kRows = 8;
#elif defined(__AVX2__)
constexpr int kVector = 8, kMaxVectors = 3, kRows = 4;
#else
constexpr int kVector = 4, kMaxVectors = 2, kRows = 4;
#endif
constexpr int kPanelColumns = kVector * kMaxVectors;

/// Steps of a packed contraction of BF16 pairs come in multiples of this; the last ones are zeros.
#if defined(__AMX_BF16__)
constexpr std::int64_t kStepMultiple = kTileSteps;
#else
constexpr std::int64_t kStepMultiple = 1;
#endif

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

#if defined(__AMX_BF16__)

/// Products of tiles (tiles.h); rows are packed one after the other.
struct TileProducts {
  static constexpr int kStepSize = 2;
};
using Bf16Math = TileProducts;
using Fp8Math = TileProducts;

#elif defined(__AVX512BF16__)

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

/// Packed rows (gemm.h) side by side: the units of one step of kRows rows follow one another.
struct RowsSideBySide {
  const float* first;
  [[gnu::always_inline]] float unit(int row, std::int64_t step) const { return first[step * kRows + row]; }
};
/// Packed rows one after the other.
template <int Rows>
struct RowsInTurn {
  const float* row_begin[Rows];
  [[gnu::always_inline]] float unit(int row, std::int64_t step) const { return row_begin[row][step]; }
};

/// The end of a product whose sums are kept in FP32 memory: sums[r * stride + c], unaligned.
struct KeepSums {
  float* sums;
  std::int64_t stride;
  template <int Rows, int Vectors>
  [[gnu::always_inline]] void finish(const Vector (&sum)[Rows][Vectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        *reinterpret_cast<UnalignedVector*>(sums + r * stride + v * kVector) = sum[r][v];
      }
    }
  }
};

/// The sums that an earlier part of the contraction kept, or zeros if `sums` is null.
struct CarriedSums {
  const float* sums;
  std::int64_t stride;
};

/// finish(carried + product of `steps` packed steps): the sums stay in registers throughout.
template <class Math, int Rows, int Vectors, class PackedRows, class Finish>
[[gnu::noinline]] void multiply_panel(PackedRows a, const float* b, std::int64_t steps, CarriedSums carried,
                                      const Finish& end) {
  Vector sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] =
          carried.sums
              ? *reinterpret_cast<const UnalignedVector*>(carried.sums + r * carried.stride + v * kVector)
              : Vector{};
    }
  }
  for (std::int64_t step = 0; step < steps; ++step) {
    Vector columns[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) columns[v] = *reinterpret_cast<const Vector*>(b + v * kVector);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vector row = broadcast(a.unit(r, step));
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) Math::apply(sum[r][v], row, columns[v]);
    }
    b += Vectors * kVector;
  }
  end.finish(sum);
}

/// Where packed rows stand: `stride` floats from a row to the next, or 0 for rows side by side.
struct PackedRows {
  const float* data;
  std::int64_t stride;
};

template <class Math, int Rows, int Vectors, class Finish>
[[gnu::always_inline]] inline void multiply_panel(PackedRows a, const float* b, std::int64_t steps,
                                                  CarriedSums carried, const Finish& end) {
  if (a.stride == 0) {
    return multiply_panel<Math, Rows, Vectors>(RowsSideBySide{a.data}, b, steps, carried, end);
  }
  RowsInTurn<Rows> rows;
  for (int r = 0; r < Rows; ++r) rows.row_begin[r] = a.data + r * a.stride;
  multiply_panel<Math, Rows, Vectors>(rows, b, steps, carried, end);
}

template <class Math, int Rows, class Finish>
void multiply_panel(int vectors, PackedRows a, const float* b, std::int64_t steps, CarriedSums carried,
                    const Finish& end) {
  if (vectors == 1) return multiply_panel<Math, Rows, 1>(a, b, steps, carried, end);
  if (vectors == 2) return multiply_panel<Math, Rows, 2>(a, b, steps, carried, end);
  return multiply_panel<Math, Rows, kMaxVectors>(a, b, steps, carried, end);
}

#if defined(__AMX_BF16__)

/// The first `rows` of a panel; up to 15 rows more may be computed, but never more than kRows. The sums are kept.
template <class Math>
void multiply_panel(std::int64_t rows, int vectors, PackedRows a, const float* b, std::int64_t steps,
                    CarriedSums carried, const KeepSums& kept) {
  multiply_tiles(rows, vectors, {a.data, a.stride}, b, steps, {carried.sums, carried.stride}, kept.sums,
                 kept.stride);
}

#else

/// The same for the first `rows` of a panel: a few rows more may be computed, but never more than kRows.
template <class Math, class Finish>
void multiply_panel(std::int64_t rows, int vectors, PackedRows a, const float* b, std::int64_t steps,
                    CarriedSums carried, const Finish& end) {
  [[maybe_unused]] const typename Math::Scope scope;
  if (rows == 1) return multiply_panel<Math, 1>(vectors, a, b, steps, carried, end);
  if (rows <= kRows / 2) return multiply_panel<Math, kRows / 2>(vectors, a, b, steps, carried, end);
  return multiply_panel<Math, kRows>(vectors, a, b, steps, carried, end);
}

#endif

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Steps of a packed contraction of pairs.
constexpr std::int64_t pair_steps_of(std::int64_t contraction) {
  return round_up((contraction + 1) / 2, kStepMultiple);
}

/// Cuts a group of columns into panels of nearly equal width, at most kMaxVectors vectors, wide ones first: calls body(first
/// column, vectors). With two vectors all but the last are wide, so groups of whole panels, one after the other, are a group.
template <class Body>
void for_column_panels(std::int64_t columns, const Body& body) {
  const std::int64_t vectors = (columns + kVector - 1) / kVector;
  const std::int64_t panels = (vectors + kMaxVectors - 1) / kMaxVectors;
  for (std::int64_t p = 0; p < panels; ++p) {
    const std::int64_t first = (p * vectors + panels - 1) / panels;
    const std::int64_t end = ((p + 1) * vectors + panels - 1) / panels;
    body(first * kVector, static_cast<int>(end - first));
  }
}

/// The packed panel of kRows rows that starts at `row`, from `step` on.
inline PackedRows panel_of(PackedRows rows, std::int64_t row, std::int64_t steps, std::int64_t step) {
  if (rows.stride == 0) return {rows.data + row * steps + step * kRows, 0};
  return {rows.data + row * rows.stride + step, rows.stride};
}

/// What a panel of rows needs of a block's product: the first `columns`, and the steps [first, end).
struct NeededPart {
  std::int64_t columns, first_step, end_step;
};

/// sums[r * stride + c] (+)= product of packed rows and a packed group of columns; rows and columns are
/// padded in `sums`. needed(row) tells the NeededPart of the kRows rows from `row` on: sums of other columns
/// may stay as they are, products of other steps are zeros.
template <class Math, class Needed>
void multiply_block(PackedRows a, const float* b, std::int64_t rows, std::int64_t columns, std::int64_t steps,
                    float* sums, std::int64_t stride, bool carry, const Needed& needed) {
  for_column_panels(columns, [&](std::int64_t column, int vectors) {
    for (std::int64_t row = 0; row < rows; row += kRows) {
      const NeededPart part = needed(row);
      if (column >= part.columns || (carry && part.first_step >= part.end_step)) continue;
      float* const panel_sums = sums + row * stride + column;
      multiply_panel<Math>(rows - row, vectors, panel_of(a, row, steps, part.first_step),
                           b + column * steps + part.first_step * vectors * kVector,
                           part.end_step - part.first_step, CarriedSums{carry ? panel_sums : nullptr, stride},
                           KeepSums{panel_sums, stride});
    }
  });
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
