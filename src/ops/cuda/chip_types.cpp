#include "ops/cuda/chip_types.h"

#include <fmt/format.h>

namespace quaver::cuda {
namespace {

constexpr int kOldestWithBf16 = 80, kOldestWithFp8 = 89, kChipWithBlocks = 90;

std::string fp8_on(int chip) {
  if (chip < kOldestWithFp8) return "no FP8 units before compute capability 8.9";
  if (chip / 10 == 10) return "tensor cores, operands in any layout";
  const std::string contiguous =
      "tensor cores, operands contiguous along the contraction: casts write transposed bytes too";
  return chip == kChipWithBlocks ? contiguous + "; e4m3 also in blocks of 128 (recipe block)" : contiguous;
}

}  // namespace

std::vector<TypeFact> types_of_chip(int chip) {
  const bool fp8 = chip >= kOldestWithFp8, bf16 = chip >= kOldestWithBf16;
  return {{"f32", true, "FP32 units, no TF32"},
          {"bf16", bf16, bf16 ? "tensor cores, FP32 sums" : "no BF16 units before compute capability 8.0"},
          {"e4m3", fp8, fp8_on(chip)},
          {"e5m2", fp8, fp8 ? fp8_on(chip) + "; not e5m2 by e5m2" : fp8_on(chip)}};
}

std::string why_no_block_products(int chip, std::size_t cublas_version) {
  constexpr std::size_t kFirstWithBlocks = 120900;
  if (chip != kChipWithBlocks)
    return fmt::format("cuBLASLt multiplies blocks of 128 on sm_90 alone, this GPU is sm_{}", chip);
  if (cublas_version < kFirstWithBlocks)
    return fmt::format("blocks of 128 need cuBLASLt 12.9 or newer, found {}.{}", cublas_version / 10000,
                       cublas_version / 100 % 100);
  return {};
}

}  // namespace quaver::cuda
