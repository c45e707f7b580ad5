/// The part of a GEMM that is compiled once per instruction-set level: packing and multiplying.
///
/// A product is out[m, n] = sum_k a(m, k) b(n, k). Both operands are matrices of *lanes* (rows of `a`,
/// columns of the output for `b`) by contraction, whatever their layout in memory. Packing widens them
/// exactly and stores them in the order in which the multiplication reads them, as *units* of 4 bytes:
/// - an f32 number, one step of the contraction; or
/// - two bf16 numbers, two steps, the one that comes first in the upper half: the dot-product instruction
///   multiplies and adds the upper halves first, so that the sum runs in ascending order (one rounding per
///   product). Which of the two is the level's choice. An odd BF16 contraction ends with a zero at every
///   level.
#pragma once

#include <cstdint>

namespace quaver::cpu {

enum class Element : std::uint8_t { f32, bf16, e4m3, e5m2 };

/// Element (lane, k) is data[lane * stride + k] if `along_contraction`, else data[k * stride + lane].
struct Operand {
  const void* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t lanes = 0, contraction = 0;
  Element element = Element::f32;
  bool along_contraction = true;
};

/// out[m * stride + n] = round(sum * scale + bias[n] + old out), each operation rounded; bias may be null.
struct GemmOutput {
  void* data = nullptr;
  std::int64_t stride = 0;
  bool is_bf16 = false;
  bool accumulate = false;
  float scale = 1;
  const float* bias = nullptr;

  /// The part that begins at an element. Not inline: kernels include this header, each compiled for its level.
  GemmOutput from(std::int64_t row, std::int64_t column) const;
};

/// A rectangle of the output: the product of packed rows with one packed group of columns.
struct GemmTile {
  Element element = Element::f32;  ///< of either operand (FP8: which of the formats does not matter)
  const float* a = nullptr;        ///< as `pack_rows` wrote it
  std::int64_t a_stride = 0;       ///< packed_row_stride of its source
  const float* b = nullptr;        ///< as `pack_columns` wrote it
  std::int64_t rows = 0, columns = 0, contraction = 0;
  float* sums = nullptr;  ///< scratch of round_up(rows, row_panel) * round_up(columns, vector) numbers
  GemmOutput out;         ///< from the tile's first element
};

/// Columns where they stand, in bytes.
struct ColumnLines {
  const void* first = nullptr;
  std::int64_t stride = 0, bytes = 0, count = 0;
};

/// Columns [begin, end) of a product of few rows, whose columns are read where they stand.
struct FewRowsTile {
  const float* rows = nullptr;  ///< as `pack_rows` wrote them
  std::int64_t row_stride = 0;  ///< of their source
  std::int64_t row_count = 0;
  Operand columns;  ///< all of the product
  std::int64_t begin = 0, end = 0;
  std::int64_t fetched = 0;  ///< of these columns, by the tile before this one
  ColumnLines next;          ///< what the thread multiplies next, of any product: it is fetched
  GemmOutput out;            ///< of the whole product
};

/// Products of few rows without packed columns: a step for one token reads every weight once, and packing it would
/// cost more than reading it.
struct FewRowsKernels {
  std::int64_t columns;  ///< of a tile, at most
  bool (*takes)(const Operand& rows, const Operand& columns);
  std::int64_t (*row_stride)(const Operand& rows);
  /// All rows one after the other, row_stride units apart: pairs of BF16 numbers; FP8 numbers as pairs or one by one.
  void (*pack_rows)(const Operand& rows, float* packed);
  void (*multiply)(const FewRowsTile& tile);
};

/// Packed rows stand one after the other if their source lies along the contraction (no transposition) or the level multiplies
/// tiles, or else side by side in panels of row_panel, step after step. `lanes` rows take
/// round_up(lanes, row_panel) * (packed_row_stride, or steps if that is 0) units, a group of columns
/// round_up(lanes, vector) * steps, with `steps` of the level. Packed memory is
/// 64-byte aligned.
struct GemmKernels {
  std::int64_t row_panel;  ///< rows of one packed panel
  std::int64_t vector;     ///< lanes of one vector
  std::int64_t (*steps)(Element element, std::int64_t contraction);
  std::int64_t (*packed_row_stride)(const Operand& source);  ///< 0: rows side by side
  /// Packs lanes [begin, end) in panels of row_panel; `begin` and the packed memory start a panel; missing
  /// lanes become 0.
  void (*pack_rows)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
  /// Packs lanes [begin, end) as one group of columns, which a tile then uses as a whole.
  void (*pack_columns)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
  void (*multiply)(const GemmTile& tile);
  /// Null at levels that pack the columns of all products. FP8 numbers are multiplied one by one or by pairs, to the same bits.
  const FewRowsKernels *few_rows_by_numbers, *few_rows_by_pairs;
};

namespace baseline {
extern const GemmKernels gemm_kernels;
}
namespace avx2 {
extern const GemmKernels gemm_kernels;
}
namespace avx512 {
extern const GemmKernels gemm_kernels;
}
}  // namespace quaver::cpu
