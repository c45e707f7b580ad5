/// The two 8-bit element formats: E4M3 (finite variant, "E4M3FN") and E5M2.
///
/// Sources: the OCP 8-bit floating point specification; Micikevicius et al. 2022 (arXiv 2209.05433). Encoding
/// rounds to nearest, ties to even, subnormals included; finite overflow and infinities saturate to the
/// largest finite value with the sign kept; every NaN becomes 0x7F; -0 stays -0. Decoding is exact.
#pragma once

#include <cstdint>

#include "quaver/tensor.h"

namespace quaver {

/// Largest finite value: 448 for e4m3, 57344 for e5m2. Throws for any other type.
float fp8_max(DType format);

/// Encodes one FP32 number. `format` is e4m3 or e5m2.
std::uint8_t fp8_encode(DType format, float value);

/// Decodes one byte.
float fp8_decode(DType format, std::uint8_t byte);

}  // namespace quaver
