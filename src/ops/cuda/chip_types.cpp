#include "ops/cuda/chip_types.h"

namespace quaver::cuda {
namespace {

constexpr int kOldestWithBf16 = 80, kOldestWithFp8 = 89;

std::string fp8_on(int chip) {
  if (chip < kOldestWithFp8) return "no FP8 units before compute capability 8.9";
  if (chip / 10 == 10) return "tensor cores, operands in any layout";
  return "tensor cores, operands contiguous along the contraction: casts write transposed bytes too";
}

}  // namespace

std::vector<TypeFact> types_of_chip(int chip) {
  const bool fp8 = chip >= kOldestWithFp8, bf16 = chip >= kOldestWithBf16;
  return {{"f32", true, "FP32 units, no TF32"},
          {"bf16", bf16, bf16 ? "tensor cores, FP32 sums" : "no BF16 units before compute capability 8.0"},
          {"e4m3", fp8, fp8_on(chip)},
          {"e5m2", fp8, fp8 ? fp8_on(chip) + "; not e5m2 by e5m2" : fp8_on(chip)}};
}

}  // namespace quaver::cuda
