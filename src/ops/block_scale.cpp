#include "ops/block_scale.h"

#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/random.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

float round_to(DType stored, float scale_inv) {
  switch (stored) {
    case DType::f32:
      return scale_inv;
    case DType::e8m0:
      return e8m0_decode(e8m0_encode(scale_inv));
    case DType::e4m3:
      return fp8_decode(stored, fp8_encode(stored, scale_inv));
    default:
      fail(ErrorKind::usage, "quantize: scales of blocks are stored as f32, e8m0 or e4m3, found {}",
           name_of(stored));
  }
}

}  // namespace

BlockScale block_scale_of(const OperandCast& cast, float amax, bool nan, float tensor_scale, float largest) {
  float scale_inv = cast.rule->block_scale_inv(amax, tensor_scale, largest);
  if (nan && cast.format == DType::e2m1) scale_inv = std::numeric_limits<float>::quiet_NaN();
  scale_inv = round_to(cast.rule->stored(), scale_inv);
  return {scale_inv, scale_inv == 0 ? 0 : tensor_scale / scale_inv};
}

std::uint8_t scale_byte(DType stored, float scale_inv) {
  return stored == DType::e8m0 ? e8m0_encode(scale_inv) : fp8_encode(stored, scale_inv);
}

void store_scale(const BlockScales& blocks, std::int64_t index, float scale_inv) {
  const DType stored = blocks.scale_inv.dtype();
  if (stored == DType::f32) {
    blocks.scale_inv.data<float>()[index] = scale_inv;
  } else {
    blocks.scale_inv.data<std::uint8_t>()[index] = scale_byte(stored, scale_inv);
  }
}

float load_scale(const BlockScales& blocks, std::int64_t index) {
  const DType stored = blocks.scale_inv.dtype();
  if (stored == DType::f32) return blocks.scale_inv.data<float>()[index];
  const std::uint8_t byte = blocks.scale_inv.data<std::uint8_t>()[index];
  return stored == DType::e8m0 ? e8m0_decode(byte) : fp8_decode(stored, byte);
}

std::uint16_t hadamard_signs(const CastNoise& noise) {
  return static_cast<std::uint16_t>(Random(noise.seed, stable_hash("hadamard")).bits(0));
}

}  // namespace quaver
