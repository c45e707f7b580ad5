/// The scale of one block, as `Backend::quantize` defines it, and where it is stored.
#pragma once

#include <cstdint>

#include "quaver/recipe.h"
#include "quaver/scaling.h"

namespace quaver {

struct BlockScale {
  float scale_inv;   ///< as stored
  float multiplier;  ///< of elements, before they are encoded
};

/// `nan`: whether the block has one. `largest`: fp8_max of the element type.
BlockScale block_scale_of(const OperandCast& cast, float amax, bool nan, float tensor_scale, float largest);

/// In a type of one byte.
std::uint8_t scale_byte(DType stored, float scale_inv);

/// Entry `index` of the scales of blocks; a store writes what `block_scale_of` rounded.
void store_scale(const BlockScales& blocks, std::int64_t index, float scale_inv);
float load_scale(const BlockScales& blocks, std::int64_t index);

/// The signs of the random Hadamard matrix: bit i set, row i is negated.
std::uint16_t hadamard_signs(const CastNoise& noise);

constexpr std::int64_t kHadamardRows = 16;

}  // namespace quaver
