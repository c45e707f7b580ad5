#include <gtest/gtest.h>

#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

TEST(CudaTileGrid, HasABlockForEveryTileWithinTheLimitsOfAGrid) {
  constexpr std::int64_t kMost = 65535;
  for (const std::int64_t down :
       {std::int64_t{1}, std::int64_t{3}, kMost, kMost + 1, 2 * kMost, 2 * kMost + 5}) {
    for (const std::int64_t rows : {down * kTileRows, (down - 1) * kTileRows + 1}) {
      const dim3 grid = tile_grid(rows, 3 * kTileCols + 1);
      EXPECT_EQ(grid.x, 4u);
      EXPECT_LE(grid.y, kMost);
      EXPECT_LE(grid.z, kMost);
      EXPECT_GE(std::int64_t{grid.y} * grid.z, down) << rows;
      EXPECT_LT(std::int64_t{grid.y} * (grid.z - 1), down) << rows;
    }
  }
}

}  // namespace
}  // namespace quaver::cuda
