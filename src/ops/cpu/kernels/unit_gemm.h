/// The part of a product by a matrix unit that is compiled for the unit: packing and multiplying. Operands and units are those of
/// gemm.h.
#pragma once

#include "ops/cpu/kernels/gemm.h"

namespace quaver::cpu {

/// Lanes of one operand: packed or, `in_turn` of them at a time, to be packed when they are multiplied.
struct UnitLanes {
  Operand source;            ///< these lanes only
  float* packed = nullptr;   ///< all of them, or memory for `in_turn`
  std::int64_t in_turn = 0;  ///< whole panels; 0: they are packed
};

/// A rectangle of the output. At least one operand is packed.
struct UnitTile {
  UnitLanes rows, columns;
  /// Scratch for whole panels of what is multiplied at a time: all lanes of a side, or `in_turn`. Not needed if the contraction has
  /// `carried_from` steps or fewer.
  float* sums = nullptr;
  GemmOutput out;  ///< from the tile's first element
};

/// Packed rows stand one after the other, row_stride units apart, and packed columns in panels of `panel` lanes, each of all its steps: of
/// `steps` units a lane. Both are padded to whole panels, so groups of whole panels may be packed apart. Packed memory is
/// 64-byte aligned. Not for FP32.
struct UnitGemmKernels {
  std::int64_t panel;  ///< lanes, of rows and of columns
  std::int64_t (*steps)(Element element, std::int64_t contraction);
  std::int64_t (*row_stride)(const Operand& source);
  void (*pack_rows)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
  void (*pack_columns)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
  std::int64_t carried_from;  ///< steps multiplied at once, at most
  void (*multiply)(const UnitTile& tile);
};

namespace amx {
extern const UnitGemmKernels gemm_kernels;
}

}  // namespace quaver::cpu
