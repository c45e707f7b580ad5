/// The end of a product that is written to the output: scale, bias, old values, one rounding, from registers.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/microkernel.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

typedef std::uint32_t Bits __attribute__((vector_size(kVector * 4), may_alias));
typedef std::uint16_t Halves __attribute__((vector_size(kVector * 2), may_alias));

/// Round to nearest, ties to even; every NaN becomes 0x7FC0; denormals are kept.
inline Halves round_to_bf16(Vector x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Bits nan = reinterpret_cast<Bits>((bits & 0x7FFFFFFF) > 0x7F800000);
  return __builtin_convertvector((rounded & ~nan) | (nan & 0x7FC0), Halves);
}

#if defined(__AVX512BF16__)
/// What vcvtneps2bf16 does not round as round_to_bf16: it flushes denormals and keeps payloads of NaN.
template <int Vectors>
[[gnu::always_inline]] inline bool has_nan_or_denormal(const Vector (&x)[Vectors]) {
  constexpr int kNanOrDenormal = 0x81 | 0x20;
  __mmask16 special = 0;
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v)
    special = _kor_mask16(special, _mm512_fpclass_ps_mask(x[v], kNanOrDenormal));
  return !_kortestz_mask16_u8(special, special);
}
#endif

/// round_to_bf16 of all vectors, by one instruction each where there is one and no vector asks for the long way.
template <int Vectors>
[[gnu::always_inline]] inline void to_bf16(const Vector (&x)[Vectors], Halves (&rounded)[Vectors]) {
#if defined(__AVX512BF16__)
  if (__builtin_expect(!has_nan_or_denormal(x), 1)) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) rounded[v] = reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x[v]));
    return;
  }
#endif
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) rounded[v] = round_to_bf16(x[v]);
}

[[gnu::always_inline]] inline Vector from_bf16(Halves x) {
  return reinterpret_cast<Vector>(__builtin_convertvector(x, Bits) << 16);
}

/// The first `count` of kVector elements; the others are zeros.
template <typename Whole, typename Element>
[[gnu::always_inline]] inline Whole load_part(const Element* from, std::int64_t count) {
  if (count >= kVector) {
    typedef Whole Unaligned __attribute__((aligned(alignof(Element))));
    return *reinterpret_cast<const Unaligned*>(from);
  }
  Whole whole{};
  for (std::int64_t i = 0; i < count; ++i) whole[i] = from[i];
  return whole;
}

template <typename Whole, typename Element>
[[gnu::always_inline]] inline void store_part(Whole whole, Element* to, std::int64_t count) {
  if (count >= kVector) {
    typedef Whole Unaligned __attribute__((aligned(alignof(Element))));
    *reinterpret_cast<Unaligned*>(to) = whole;
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) to[i] = whole[i];
}

/// Writes the valid part of a panel of sums at (row, column) of `out`. What there is to do is decided once for a panel, or once for
/// a row: with few steps, as in wgrad of few tokens, a branch for every vector took as long as the products.
struct StoreOutput {
  const GemmOutput& out;
  std::int64_t row, column;
  std::int64_t rows, columns;  ///< valid ones, from (row, column) on

  template <int Rows, int Vectors>
  [[gnu::always_inline]] void finish(const Vector (&sum)[Rows][Vectors]) const {
    Vector x[Rows][Vectors];
    const Vector scale = broadcast(out.scale);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) x[r][v] = sum[r][v] * scale;
    }
    if (out.bias) add_bias(x);
    if (columns < Vectors * kVector) {
      Vector in_memory[Rows][Vectors];  // the others stay in registers
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) in_memory[r][v] = x[r][v];
      }
      return store_parts(in_memory[0], lower(rows, Rows), Vectors);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      if (r >= rows) break;
      out.is_bf16 ? store_row(x[r], at<std::uint16_t>(r)) : store_row(x[r], at<float>(r));
    }
  }

 private:
  template <typename T>
  T* at(std::int64_t r) const {
    return static_cast<T*>(out.data) + (row + r) * out.stride + column;
  }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] void add_bias(Vector (&x)[Rows][Vectors]) const {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const auto bias = load_part<Vector>(out.bias + column + v * kVector, columns - v * kVector);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) x[r][v] += bias;
    }
  }

  template <int Vectors>
  [[gnu::always_inline]] void store_row(Vector (&x)[Vectors], float* to) const {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      if (out.accumulate) x[v] += load_part<Vector>(to + v * kVector, kVector);
      store_part(x[v], to + v * kVector, kVector);
    }
  }
  template <int Vectors>
  [[gnu::always_inline]] void store_row(Vector (&x)[Vectors], std::uint16_t* to) const {
    if (out.accumulate) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) x[v] += from_bf16(load_part<Halves>(to + v * kVector, kVector));
    }
    Halves rounded[Vectors];
    to_bf16(x, rounded);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store_part(rounded[v], to + v * kVector, kVector);
  }

  /// The panel at the end of the columns: `row_count` rows of `vectors` vectors at `x`.
  [[gnu::noinline]] void store_parts(const Vector* x, std::int64_t row_count, std::int64_t vectors) const {
    for (std::int64_t r = 0; r < row_count; ++r) {
      for (std::int64_t v = 0; v * kVector < columns; ++v) {
        const std::int64_t count = columns - v * kVector;
        Vector part[1] = {x[r * vectors + v]};
        if (out.is_bf16) {
          std::uint16_t* const to = at<std::uint16_t>(r) + v * kVector;
          if (out.accumulate) part[0] += from_bf16(load_part<Halves>(to, count));
          Halves rounded[1];
          to_bf16(part, rounded);
          store_part(rounded[0], to, count);
        } else {
          float* const to = at<float>(r) + v * kVector;
          if (out.accumulate) part[0] += load_part<Vector>(to, count);
          store_part(part[0], to, count);
        }
      }
    }
  }
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
