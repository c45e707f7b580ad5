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

/// round_to_bf16 by one instruction where there is one. vcvtneps2bf16 flushes denormals and keeps payloads of
/// NaN: vectors with either take the long way.
[[gnu::always_inline]] inline Halves to_bf16(Vector x) {
#if defined(__AVX512BF16__)
  constexpr int kNanOrDenormal = 0x81 | 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(x, kNanOrDenormal) != 0, 0)) return round_to_bf16(x);
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(x));
#else
  return round_to_bf16(x);
#endif
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

/// Writes the valid part of a panel of sums at (row, column) of `out`.
struct StoreOutput {
  const GemmOutput& out;
  std::int64_t row, column;
  std::int64_t rows, columns;  ///< valid ones, from (row, column) on

  /// The output is seldom in a cache: its lines arrive while the panel is computed.
  [[gnu::always_inline]] void prefetch() const {
    const std::int64_t size = out.is_bf16 ? 2 : 4;
    const char* line = static_cast<const char*>(out.data) + (row * out.stride + column) * size;
    for (std::int64_t r = 0; r < rows; ++r, line += out.stride * size) {
      for (std::int64_t byte = 0; byte < columns * size; byte += 64) __builtin_prefetch(line + byte, 1);
      __builtin_prefetch(line + columns * size - 1, 1);
    }
  }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] void finish(const Vector (&sum)[Rows][Vectors]) const {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      if (r >= rows) break;
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        store(sum[r][v], row + r, column + v * kVector, columns - v * kVector);
    }
  }

 private:
  [[gnu::always_inline]] void store(Vector x, std::int64_t m, std::int64_t n, std::int64_t count) const {
    x *= broadcast(out.scale);
    if (out.bias) x += load_part<Vector>(out.bias + n, count);
    const std::int64_t at = m * out.stride + n;
    if (out.is_bf16) {
      auto* to = static_cast<std::uint16_t*>(out.data) + at;
      if (out.accumulate) x += from_bf16(load_part<Halves>(to, count));
      store_part(to_bf16(x), to, count);
    } else {
      auto* to = static_cast<float*>(out.data) + at;
      if (out.accumulate) x += load_part<Vector>(to, count);
      store_part(x, to, count);
    }
  }
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
