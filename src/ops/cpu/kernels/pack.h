/// Packing matrices for the multiplication: the units and their order are described in gemm.h.
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack_eights.h"
#if defined(__AVX512BF16__)
#include "ops/cpu/kernels/pack_pairs.h"
#endif
namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr std::int64_t lower(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

/// Units per lane. An odd BF16 contraction ends with a product of zeros, which makes a sum of -0 a +0, at
/// every level.
constexpr std::int64_t steps_of(Element element, std::int64_t contraction) {
  if (element == Element::f32) return contraction;
  if (Fp8Math::kStepSize == 2) return pair_steps_of(contraction);
  return element == Element::bf16 ? round_up(contraction, 2) : contraction;
}

/// Floats from a packed row to the next: an odd number of cache lines, so that a panel's rows do not compete
/// for one set of the inner cache.
constexpr std::int64_t row_stride(Element element, std::int64_t contraction) {
  constexpr std::int64_t kLine = 16;
  return (round_up(steps_of(element, contraction), kLine) / kLine | 1) * kLine;
}

/// Tiles read the steps of one row after the other.
constexpr bool kAlwaysInTurn = kStepMultiple > 1;

inline std::int64_t packed_row_stride(const Operand& source) {
  return source.along_contraction || kAlwaysInTurn ? row_stride(source.element, source.contraction) : 0;
}

/// Contraction steps packed for all lanes before the next: source lines shared by neighbouring lanes stay in
/// the cache.
constexpr std::int64_t kPackSteps = 256;

/// Steps [k, k_end) of lanes [begin, end), interleaved `width` wide, the lanes beyond `end` zero. f32 units.
template <class Elements>
void pack_panel(const Operand& source, std::int64_t begin, std::int64_t end, std::int64_t k,
                std::int64_t k_end, std::int64_t width, float* panel) {
  const auto* data = static_cast<const typename Elements::Type*>(source.data);
  const std::int64_t lanes = end - begin;
  if (source.along_contraction) {
    widen_transposed<Elements>(data + begin * source.stride, source.stride, lanes, k, k_end, width, panel);
  } else {
    for (std::int64_t i = k; i < k_end; ++i)
      widen_run<Elements>(data + i * source.stride + begin, lanes, panel + i * width);
  }
  for (std::int64_t i = k; lanes < width && i < k_end; ++i) {
    for (std::int64_t lane = lanes; lane < width; ++lane) panel[i * width + lane] = 0;
  }
  if (k_end == source.contraction && steps_of(source.element, k_end) > k_end) {
    for (std::int64_t lane = 0; lane < width; ++lane) panel[k_end * width + lane] = 0;
  }
}

void pack_panel_units(const Operand& source, std::int64_t begin, std::int64_t end, std::int64_t k,
                      std::int64_t k_end, std::int64_t width, float* panel) {
  switch (source.element) {
    case Element::f32:
      return pack_panel<F32Elements>(source, begin, end, k, k_end, width, panel);
    case Element::bf16:
      return pack_panel<Bf16Elements>(source, begin, end, k, k_end, width, panel);
    case Element::e4m3:
      return pack_panel<E4m3Elements>(source, begin, end, k, k_end, width, panel);
    case Element::e5m2:
      return pack_panel<E5m2Elements>(source, begin, end, k, k_end, width, panel);
  }
}

/// One row after the other; a row's unused end is not written.
template <class Elements>
void pack_rows_in_turn(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  const std::int64_t stride = packed_row_stride(source), steps = steps_of(source.element, source.contraction);
  for (std::int64_t lane = begin; lane < end; ++lane, packed += stride) {
    const auto* from = static_cast<const typename Elements::Type*>(source.data) + lane * source.stride;
    widen_run<Elements>(from, source.contraction, packed);
    for (std::int64_t i = source.contraction; i < steps; ++i) packed[i] = 0;
  }
}

void pack_rows_in_turn(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  switch (source.element) {
    case Element::f32:
      return pack_rows_in_turn<F32Elements>(source, begin, end, packed);
    case Element::bf16:
      return pack_rows_in_turn<Bf16Elements>(source, begin, end, packed);
    case Element::e4m3:
      return pack_rows_in_turn<E4m3Elements>(source, begin, end, packed);
    case Element::e5m2:
      return pack_rows_in_turn<E5m2Elements>(source, begin, end, packed);
  }
}

void pack_rows_side_by_side(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  const std::int64_t steps = steps_of(source.element, source.contraction);
  for (std::int64_t k = 0; k < source.contraction; k += kPackSteps) {
    const std::int64_t k_end = lower(source.contraction, k + kPackSteps);
    for (std::int64_t lane = begin; lane < end; lane += kRows) {
      pack_panel_units(source, lane, lower(end, lane + kRows), k, k_end, kRows,
                       packed + (lane - begin) * steps);
    }
  }
}

void pack_rows(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  const std::int64_t stride = packed_row_stride(source);
  const bool in_turn = stride != 0;
  if (in_turn) {  // the panel's missing rows
    const std::int64_t rows = round_up(end - begin, kRows);
    for (std::int64_t i = (end - begin) * stride; i < rows * stride; ++i) packed[i] = 0;
  }
#if defined(__AVX512BF16__)
  if (source.element != Element::f32) {
    return in_turn ? pack_row_pairs_in_turn(source, begin, end, packed, stride)
                   : pack_row_pairs_side_by_side(source, begin, end, packed);
  }
#endif
  in_turn ? pack_rows_in_turn(source, begin, end, packed)
          : pack_rows_side_by_side(source, begin, end, packed);
}

void pack_columns(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
#if defined(__AVX512BF16__)
  if (source.element != Element::f32) return pack_column_pairs(source, begin, end, packed);
#endif
  const std::int64_t steps = steps_of(source.element, source.contraction);
  for (std::int64_t k = 0; k < source.contraction; k += kPackSteps) {
    const std::int64_t k_end = lower(source.contraction, k + kPackSteps);
    for_column_panels(end - begin, [&](std::int64_t column, int vectors) {
      const std::int64_t width = vectors * kVector, lane = begin + column;
      pack_panel_units(source, lane, lower(end, lane + width), k, k_end, width, packed + column * steps);
    });
  }
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
