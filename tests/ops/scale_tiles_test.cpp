/// The layout of swizzled scales: numbers worked out by hand from cuBLAS's documentation of it, and that no two scales share a place.
#include "ops/scale_tiles.h"

#include <gtest/gtest.h>

#include <vector>

namespace quaver {
namespace {

TEST(ScaleTiles, OffsetsAreThoseOfTheDocumentation) {
  // Within a tile: (row % 32) * 16 + (row / 32) * 4 + block.
  EXPECT_EQ(offset_in_scale_tile(0, 3), 3);
  EXPECT_EQ(offset_in_scale_tile(1, 0), 16);
  EXPECT_EQ(offset_in_scale_tile(32, 0), 4);
  EXPECT_EQ(offset_in_scale_tile(127, 3), 511);
  // Of an operand of 128 rows and 8 blocks: two tiles, 1024 bytes for 128 rows. The first two offsets are worked examples of nvmath-python's documentation.
  EXPECT_EQ(scale_tile_offset(5, 2, 1024), 82);
  EXPECT_EQ(scale_tile_offset(5, 5, 1024), 593);
  EXPECT_EQ(scale_tile_offset(70, 1, 1024), 6 * 16 + 2 * 4 + 1);
  // The second 128 rows lie behind all tiles of the first.
  EXPECT_EQ(scale_tile_offset(128, 0, 1024), 1024);
  EXPECT_EQ(scale_tile_offset(128 + 5, 5, 1024), 1024 + 593);
}

TEST(ScaleTiles, AreWholeAndEveryScaleHasAPlaceOfItsOwn) {
  EXPECT_EQ(scale_tiles_shape(1, 1), (Shape{1, 512}));
  EXPECT_EQ(scale_tiles_shape(128, 4), (Shape{1, 512}));
  EXPECT_EQ(scale_tiles_shape(129, 5), (Shape{2, 1024}));
  EXPECT_EQ(scale_tiles_shape(0, 3), (Shape{0, 512}));
  constexpr std::int64_t kRows = 257, kBlocks = 9;
  const Shape shape = scale_tiles_shape(kRows, kBlocks);
  ASSERT_EQ(shape, (Shape{3, 1536}));
  std::vector<bool> taken(static_cast<std::size_t>(shape[0] * shape[1]));
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      const std::int64_t at = scale_tile_offset(row, block, shape[1]);
      ASSERT_TRUE(at >= 0 && at < shape[0] * shape[1]) << row << " " << block;
      ASSERT_FALSE(taken[static_cast<std::size_t>(at)]) << row << " " << block;
      taken[static_cast<std::size_t>(at)] = true;
    }
  }
}

}  // namespace
}  // namespace quaver
