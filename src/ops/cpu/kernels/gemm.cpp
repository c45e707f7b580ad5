#include "ops/cpu/kernels/gemm.h"

#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Steps multiplied before the next panel's turn: a panel of columns stays in the inner caches.
constexpr std::int64_t kBlockSteps = 512;

/// Round to nearest, ties to even; every NaN becomes 0x7FC0; denormals are kept (vcvtneps2bf16 would flush
/// them).
inline std::uint16_t to_bf16_bits(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

/// Applies scale, bias and old values to one row of sums, in place, and writes it.
void store_row(float* row, std::int64_t columns, const GemmOutput& out, std::int64_t m, std::int64_t n) {
  for (std::int64_t c = 0; c < columns; ++c) row[c] *= out.scale;
  if (out.bias) {
    for (std::int64_t c = 0; c < columns; ++c) row[c] += out.bias[n + c];
  }
  if (out.is_bf16) {
    auto* to = static_cast<std::uint16_t*>(out.data) + m * out.stride + n;
    if (out.accumulate) {
      for (std::int64_t c = 0; c < columns; ++c) row[c] += Bf16Elements::load(to[c]);
    }
    for (std::int64_t c = 0; c < columns; ++c) to[c] = to_bf16_bits(row[c]);
  } else {
    auto* to = static_cast<float*>(out.data) + m * out.stride + n;
    if (out.accumulate) {
      for (std::int64_t c = 0; c < columns; ++c) row[c] += to[c];
    }
    for (std::int64_t c = 0; c < columns; ++c) to[c] = row[c];
  }
}

/// Steps [begin, end) of the tile; the sums of a panel are carried in `sums`, and stored after the last step.
template <class Math>
void multiply_steps(const GemmTile& tile, std::int64_t steps, std::int64_t begin, std::int64_t end) {
  const bool one_block = end - begin == steps;
  float* sums = tile.sums;
  for_column_panels(tile.columns, [&](std::int64_t column, int vectors) {
    const std::int64_t width = vectors * kVector;
    for (std::int64_t row = 0; row < tile.rows; row += kRows) {
      const std::int64_t rows = lower(kRows, tile.rows - row);
      multiply_panel<Math>(rows, vectors, tile.a + row * steps + begin * kRows,
                           tile.b + column * steps + begin * width, end - begin, sums, width, begin > 0);
      if (end == steps) {
        for (std::int64_t r = 0; r < rows; ++r) {
          store_row(sums + r * width, lower(width, tile.columns - column), tile.out, row + r, column);
        }
      }
      if (!one_block) sums += kRows * width;
    }
  });
}

template <class Math>
void multiply(const GemmTile& tile) {
  const std::int64_t steps = steps_of(tile.element, tile.contraction);
  std::int64_t begin = 0;
  do {
    const std::int64_t end = lower(steps, begin + kBlockSteps);
    multiply_steps<Math>(tile, steps, begin, end);
    begin = end;
  } while (begin < steps);
}

void multiply_tile(const GemmTile& tile) {
  switch (tile.element) {
    case Element::f32:
      return multiply<MultiplyAdd>(tile);
    case Element::bf16:
      return multiply<Bf16Math>(tile);
    default:
      return multiply<Fp8Math>(tile);
  }
}

}  // namespace

const GemmKernels gemm_kernels = {
    .row_panel = kRows,
    .vector = kVector,
    .steps = steps_of,
    .pack_rows = pack_rows,
    .pack_columns = pack_columns,
    .multiply = multiply_tile,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
