#include "ops/cpu/kernels/gemm.h"

#include <type_traits>

#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/store_output.h"
#if defined(__AVX512BF16__)
#include "ops/cpu/kernels/few_rows.h"
#include "ops/cpu/kernels/few_rows_pieces.h"
#endif

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Steps multiplied before the next panel's turn: a panel of columns stays in the inner caches.
constexpr std::int64_t kBlockSteps = 512;

/// Below this many steps a tile's packed columns stay in the innermost cache, and writing the output takes longer than
/// multiplying.
constexpr std::int64_t kShortContraction = 32;

/// Steps [begin, end) of the tile; the sums of a panel are kept in `sums` until the last step.
template <class Math>
void multiply_steps(const GemmTile& tile, std::int64_t steps, std::int64_t begin, std::int64_t end) {
  const auto multiply_at = [&](std::int64_t row, std::int64_t column, int vectors) {
    const std::int64_t width = vectors * kVector, rows = lower(kRows, tile.rows - row);
    const float* b = tile.b + column * steps + begin * width;
    const PackedRows a = panel_of({tile.a, tile.a_stride}, row, steps, begin);
    float* sums = tile.sums + column * round_up(tile.rows, kRows) + row * width;
    const CarriedSums carried{begin > 0 ? sums : nullptr, width};
    if (end == steps) {
      const StoreOutput store{tile.out, row, column, rows, lower(width, tile.columns - column)};
      multiply_panel<Math>(rows, vectors, a, b, end - begin, carried, store);
    } else {
      multiply_panel<Math>(rows, vectors, a, b, end - begin, carried, KeepSums{sums, width});
    }
  };
  if (steps <= kShortContraction) {  // rows of the output are written from end to end
    for (std::int64_t row = 0; row < tile.rows; row += kRows) {
      for_column_panels(tile.columns,
                        [&](std::int64_t column, int vectors) { multiply_at(row, column, vectors); });
    }
  } else {  // a panel of columns serves all rows
    for_column_panels(tile.columns, [&](std::int64_t column, int vectors) {
      for (std::int64_t row = 0; row < tile.rows; row += kRows) multiply_at(row, column, vectors);
    });
  }
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

#if defined(__AVX512BF16__)

template <class Multiply>
void with_row_count(std::int64_t rows, const Multiply& multiply) {
  switch (rows) {
    case 1:
      return multiply(std::integral_constant<int, 1>());
    case 2:
      return multiply(std::integral_constant<int, 2>());
    case 3:
      return multiply(std::integral_constant<int, 3>());
    default:
      return multiply(std::integral_constant<int, kMostFewRows>());
  }
}

/// FP8 numbers by pairs, or one by one.
template <bool kByPairs>
void multiply_few_rows_of_any(const FewRowsTile& tile) {
  with_row_count(tile.row_count, [&](auto rows) {
    if (tile.columns.element == Element::bf16) return multiply_few_rows<Bf16Words, rows()>(tile);
    if constexpr (kByPairs) {
      multiply_few_rows_of_codes<rows()>(tile);
    } else {
      multiply_few_rows<Fp8Words, rows()>(tile);
    }
  });
}

bool takes_few_rows(const Operand& rows, const Operand& columns) {
  return rows.lanes <= kMostFewRows && rows.along_contraction && columns.along_contraction &&
         columns.element != Element::f32;
}

constexpr FewRowsKernels kFewRowsOfNumbers = {
    .columns = kFewRowsColumns,
    .takes = takes_few_rows,
    .row_stride = few_rows_stride,
    .pack_rows = pack_few_rows,
    .multiply = multiply_few_rows_of_any<false>,
};
constexpr FewRowsKernels kFewRowsOfPairs = {
    .columns = kFewRowsColumns,
    .takes = takes_few_rows,
    .row_stride = few_rows_stride_of_pairs,
    .pack_rows = pack_few_rows_as_pairs,
    .multiply = multiply_few_rows_of_any<true>,
};
constexpr const FewRowsKernels *kNumbers = &kFewRowsOfNumbers, *kPairs = &kFewRowsOfPairs;

#else
constexpr const FewRowsKernels *kNumbers = nullptr, *kPairs = nullptr;

#endif

}  // namespace

const GemmKernels gemm_kernels = {
    .row_panel = kRows,
    .vector = kVector,
    .steps = steps_of,
    .packed_row_stride = packed_row_stride,
    .pack_rows = pack_rows,
    .pack_columns = pack_columns,
    .multiply = multiply_tile,
    .few_rows_by_numbers = kNumbers,
    .few_rows_by_pairs = kPairs,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
