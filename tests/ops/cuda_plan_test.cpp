/// What a library of products is asked for: pure functions of a product.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "ops/cuda/product.h"

namespace quaver::cuda {
namespace {

alignas(256) std::uint8_t memory[1024];

/// 64 x 96 with E8M0 scales: 96 rows are one stretch of tiles, 3 blocks one tile.
Product mx_product() {
  const Factor factor{memory, 96, false, DType::e4m3, memory, FactorScales::mx, 512};
  return {{64, 64, 96}, factor, factor, false, false, memory, 64, DType::bf16};
}

TEST(CudaPlan, ScalesInTilesAreWholeAlignedAndOnBothSides) {
  EXPECT_TRUE(is_in_blocks(mx_product()));
  EXPECT_EQ(contraction_block(mx_product()), 32);
  EXPECT_TRUE(suits_library(mx_product()));
  EXPECT_EQ(describe_blocks(mx_product()), ", scales of 1 x 32 and 1 x 32");
  Product p = mx_product();
  p.left.scale_stride = 1024;
  EXPECT_FALSE(suits_library(p));
  p = mx_product();
  p.right.scale_inv = memory + 4;
  EXPECT_FALSE(suits_library(p));
  p = mx_product();
  p.size.k = 160;  // five blocks, two tiles
  EXPECT_FALSE(suits_library(p));
  p.left.scale_stride = p.right.scale_stride = 1024;
  EXPECT_TRUE(suits_library(p));
}

TEST(CudaPlan, BlocksOfTwoLengthsAndOneScaleBesideBlocksDoNotSuit) {
  Product p = mx_product();
  p.right.scales = FactorScales::rows;
  p.right.scale_stride = 64;
  EXPECT_EQ(contraction_block(p), 0);
  EXPECT_FALSE(suits_library(p));
  p.right.scales = FactorScales::tensor;
  EXPECT_TRUE(is_in_blocks(p));
  EXPECT_FALSE(suits_library(p));
  p.left.scales = FactorScales::tensor;
  EXPECT_FALSE(is_in_blocks(p));
  EXPECT_TRUE(suits_library(p));
  EXPECT_EQ(describe_blocks(p), "");
}

TEST(CudaPlan, AChipIsAskedForTheLayoutsThatItsProductsHave) {
  for (const bool any_layout : {false, true}) {
    const std::vector<Product> probes = mx_probes(any_layout, memory);
    ASSERT_EQ(probes.size(), 3u);
    for (const Product& probe : probes) EXPECT_TRUE(suits_library(probe) && contraction_block(probe) == 32);
    const auto layout = [&](int i) { return std::pair(probes[i].left.swapped, probes[i].right.swapped); };
    EXPECT_EQ(layout(0), std::pair(false, false));
    EXPECT_EQ(layout(1), std::pair(false, any_layout));
    EXPECT_EQ(layout(2), std::pair(any_layout, any_layout));
    EXPECT_TRUE(probes[2].accumulate && probes[2].out_dtype == DType::f32) << "gradients of weights";
  }
}

/// 64 x 96 and 32 x 96, one scale each.
Product product_of_tensors() {
  const Factor factor{memory, 96, false, DType::e4m3, memory};
  return {{64, 32, 96}, factor, factor, true, false, memory, 32, DType::bf16};
}

TEST(CudaPlan, ScalesOf1AreForChipsThatAreFasterInBlocks) {
  const Product p = product_of_tensors();
  for (const int chip : {120, 121}) EXPECT_TRUE(takes_unit_scales(chip, p)) << chip;
  for (const int chip : {89, 90, 100, 103}) EXPECT_FALSE(takes_unit_scales(chip, p)) << chip;
  EXPECT_FALSE(takes_unit_scales(120, mx_product())) << "has scales of blocks";
  Product other = p;
  other.size.k = 80;
  EXPECT_FALSE(takes_unit_scales(120, other)) << "the last block would be short";
  other = p;
  other.right.swapped = true;
  EXPECT_FALSE(takes_unit_scales(120, other));
  other = p;
  other.left.dtype = other.right.dtype = DType::bf16;
  EXPECT_FALSE(takes_unit_scales(120, other));
}

TEST(CudaPlan, ScalesOf1AreReadAsTilesOfBothFactors) {
  const Product p = product_of_tensors();
  EXPECT_EQ(unit_scale_bytes(p), 512);
  Product large = p;
  large.size = {129, 300, 160};
  EXPECT_EQ(unit_scale_bytes(large), 3 * 1024) << "300 rows are three stretches of two tiles";
  const Product in_blocks = with_unit_scales(p, memory + 256);
  EXPECT_TRUE(suits_library(in_blocks));
  EXPECT_EQ(contraction_block(in_blocks), 32);
  EXPECT_EQ(in_blocks.left.scale_inv, memory + 256);
  EXPECT_EQ(in_blocks.right.scale_inv, memory + 256);
  EXPECT_EQ(in_blocks.left.data, p.left.data);
  EXPECT_TRUE(in_blocks.fast_accumulation);
}

}  // namespace
}  // namespace quaver::cuda
