/// GEMMs of BF16 and FP8 operands by the matrix unit.
#include "ops/cpu/kernels/gemm.h"

#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/store_output.h"

namespace quaver::cpu::amx {
namespace {

/// Steps multiplied before the next panel's turn, at most: a panel of rows takes less than half of the innermost cache, while columns come from
/// the next one, in order. With more steps both come from there, which takes longer than the products.
constexpr std::int64_t kBlockSteps = 160;

constexpr std::int64_t block_steps(std::int64_t steps) {
  const std::int64_t blocks = steps <= kBlockSteps ? 1 : (steps + kBlockSteps - 1) / kBlockSteps;
  return round_up((steps + blocks - 1) / blocks, kTileSteps);
}

/// Where a panel's sums go. Its rows lie apart in memory, so that stores that find them in no cache would wait for each: they are
/// asked for before the panel is multiplied.
void fetch_output(const StoreOutput& panel) {
  const std::int64_t size = panel.out.is_bf16 ? 2 : 4;
  const auto* row =
      static_cast<const char*>(panel.out.data) + (panel.row * panel.out.stride + panel.column) * size;
  for (std::int64_t r = 0; r < panel.rows; ++r, row += panel.out.stride * size) {
    for (std::int64_t byte = 0; byte < panel.columns * size; byte += 64) __builtin_prefetch(row + byte, 1, 2);
  }
}

template <int Vectors>
void store_output(const float* sums, const StoreOutput& panel) {
  constexpr int kStoredRows = 4;
  for (std::int64_t row = 0; row < panel.rows; row += kStoredRows) {
    Vector part[kStoredRows][Vectors];
#pragma GCC unroll 4
    for (int r = 0; r < kStoredRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v)
        part[r][v] = *reinterpret_cast<const Vector*>(sums + (row + r) * kPanelColumns + v * kVector);
    }
    StoreOutput{panel.out, panel.row + row, panel.column, panel.rows - row, panel.columns}.finish(part);
  }
}

/// Steps [begin, end) of the tile, of `steps`. The sums of a panel are kept in `tile.sums` until the last step.
void multiply_steps(const GemmTile& tile, std::int64_t steps, std::int64_t begin, std::int64_t end) {
  alignas(64) float finished[kRows * kPanelColumns];
  for (std::int64_t row = 0; row < tile.rows; row += kRows) {
    const std::int64_t rows = lower(kRows, tile.rows - row);
    const TileMatrix a{tile.a + row * tile.a_stride + begin, tile.a_stride};
    for_column_panels(tile.columns, [&](std::int64_t column, int vectors) {
      const std::int64_t width = vectors * kVector;
      const TileMatrix b{tile.b + column * steps + begin * width, width};
      float* const kept = tile.sums + column * round_up(tile.rows, kRows) + row * width;
      const TileMatrix carried{begin > 0 ? kept : nullptr, width};
      if (end < steps) return multiply_tiles(rows, vectors, a, b, end - begin, carried, kept, width);
      const StoreOutput panel{tile.out, row, column, rows, lower(width, tile.columns - column)};
      fetch_output(panel);
      multiply_tiles(rows, vectors, a, b, end - begin, carried, finished, kPanelColumns);
      vectors == 2 ? store_output<2>(finished, panel) : store_output<1>(finished, panel);
    });
  }
}

void multiply_tile(const GemmTile& tile) {
  const TileScope tiles;
  const std::int64_t steps = steps_of(tile.element, tile.contraction), block = block_steps(steps);
  std::int64_t begin = 0;
  do {
    const std::int64_t end = lower(steps, begin + block);
    multiply_steps(tile, steps, begin, end);
    begin = end;
  } while (begin < steps);
}

}  // namespace

const GemmKernels gemm_kernels = {
    .row_panel = kRows,
    .vector = kVector,
    .steps = steps_of,
    .packed_row_stride = packed_row_stride,
    .pack_rows = pack_rows,
    .pack_columns = pack_columns,
    .multiply = multiply_tile,
    .few_rows = nullptr,
};

}  // namespace quaver::cpu::amx
