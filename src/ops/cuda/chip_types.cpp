#include "ops/cuda/chip_types.h"

#include <fmt/format.h>

namespace quaver::cuda {
namespace {

constexpr int kOldestWithBf16 = 80, kOldestWithFp8 = 89, kChipWithBlocks = 90, kOldestWithMx = 100;

std::string fp8_on(int chip) {
  if (chip < kOldestWithFp8) return "no FP8 units before compute capability 8.9";
  std::string text =
      takes_any_fp8_layout(chip)
          ? "tensor cores, operands in any layout"
          : "tensor cores, operands contiguous along the contraction: casts write transposed bytes too";
  if (chip == kChipWithBlocks) text += "; e4m3 also in blocks of 128 (recipe block)";
  if (chip >= kOldestWithMx) text += "; also in blocks of 32 (recipe mxfp8)";
  if (doubles_in_blocks(chip)) text += ", and tensors with one scale in such blocks where that is faster";
  return text;
}

}  // namespace

bool takes_any_fp8_layout(int chip) {
  return chip / 10 == 10;
}

bool doubles_in_blocks(int chip) {
  return chip / 10 == 12;
}

std::vector<TypeFact> types_of_chip(int chip) {
  const bool fp8 = chip >= kOldestWithFp8, bf16 = chip >= kOldestWithBf16;
  return {{"f32", true, "FP32 units, no TF32"},
          {"bf16", bf16, bf16 ? "tensor cores, FP32 sums" : "no BF16 units before compute capability 8.0"},
          {"e4m3", fp8, fp8_on(chip)},
          {"e5m2", fp8, fp8 ? fp8_on(chip) + "; not e5m2 by e5m2" : fp8_on(chip)}};
}

namespace {

/// Empty if the library is not older than `first` (CUBLAS_VERSION).
std::string why_too_old(const char* what, std::size_t first, std::size_t version) {
  if (version >= first) return {};
  const auto text = [](std::size_t v) { return fmt::format("{}.{}", v / 10000, v / 100 % 100); };
  return fmt::format("{} need cuBLASLt {} or newer, found {}", what, text(first), text(version));
}

}  // namespace

std::string why_no_block_products(int chip, std::size_t cublas_version) {
  if (chip != kChipWithBlocks)
    return fmt::format("cuBLASLt multiplies blocks of 128 on sm_90 alone, this GPU is sm_{}", chip);
  return why_too_old("blocks of 128", 120900, cublas_version);
}

std::string why_no_mx_products(int chip, std::size_t cublas_version) {
  if (chip < kOldestWithMx)
    return fmt::format(
        "cuBLASLt multiplies blocks of 32 with E8M0 scales on sm_100 and newer, this GPU is sm_{}", chip);
  return why_too_old("blocks of 32 with E8M0 scales", 120800, cublas_version);
}

}  // namespace quaver::cuda
