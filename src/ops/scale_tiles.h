/// Where E8M0 scales of 32 numbers along the contraction lie for products that read them swizzled: the layout of cuBLASLt's
/// scale mode VEC32_UE8M0 (cuBLAS documentation, "1D Block Scaling Factors Layout").
///
/// A row is an index of the operand outside the contraction, whichever way its numbers lie. Tiles of 128 rows by 4 blocks
/// take 512 bytes; those of one stretch of 128 rows follow each other. Sizes are rounded up to whole tiles; what lies outside the
/// operand is 0.
#pragma once

#include <cstdint>

#include "quaver/tensor.h"

namespace quaver {

constexpr std::int64_t kScaleTileRows = 128, kScaleTileBlocks = 4,
                       kScaleTileBytes = kScaleTileRows * kScaleTileBlocks;

/// [stretches of 128 rows, bytes of one stretch] of an operand of so many rows and blocks.
inline Shape scale_tiles_shape(std::int64_t rows, std::int64_t blocks) {
  return {(rows + kScaleTileRows - 1) / kScaleTileRows,
          (blocks + kScaleTileBlocks - 1) / kScaleTileBlocks * kScaleTileBytes};
}

/// Of a scale within its tile; row < 128, block < 4. The four scales of a row are neighbours, and so are rows 32 apart.
constexpr std::int64_t offset_in_scale_tile(std::int64_t row, std::int64_t block) {
  return row % 32 * 16 + row / 32 * 4 + block;
}

/// Of a scale within all tiles; `stretch`: bytes of 128 rows.
constexpr std::int64_t scale_tile_offset(std::int64_t row, std::int64_t block, std::int64_t stretch) {
  return row / kScaleTileRows * stretch + block / kScaleTileBlocks * kScaleTileBytes +
         offset_in_scale_tile(row % kScaleTileRows, block % kScaleTileBlocks);
}

}  // namespace quaver
