/// The element formats: E4M3 (finite variant, "E4M3FN") and E5M2 of 8 bits, E2M1 of 4 bits; and E8M0, the powers of two
/// that MXFP8 scales are.
///
/// Sources: the OCP microscaling formats specification (arXiv 2310.10537) for E2M1 and E8M0; the OCP 8-bit floating point specification; Micikevicius et al. 2022 (arXiv 2209.05433). Encoding
/// rounds to nearest, ties to even, subnormals included; finite overflow and infinities saturate to the
/// largest finite value with the sign kept; every NaN becomes 0x7F; -0 stays -0. Decoding is exact.
#pragma once

#include <cstdint>

#include "quaver/tensor.h"

namespace quaver {

/// Largest finite value: 448 for e4m3, 57344 for e5m2, 6 for e2m1. Throws for any other type.
float fp8_max(DType format);

/// Encodes one FP32 number. `format` is e4m3, e5m2, or e2m1: a code of 4 bits, which has no NaN (it becomes 0).
std::uint8_t fp8_encode(DType format, float value);

/// The same with stochastic rounding: of the two neighbours of |value| the upper one if the remainder exceeds `uniform`, which
/// is in [0, 1). Saturation and NaN as in `fp8_encode`.
std::uint8_t fp8_encode_stochastic(DType format, float value, float uniform);

/// Decodes one byte (of e2m1: its low 4 bits).
float fp8_decode(DType format, std::uint8_t byte);

/// The smallest E8M0 number that is not below `value` >= 0: byte b is 2^(b - 127). 0 gives byte 0, too large a number and
/// infinity 254, NaN 255.
std::uint8_t e8m0_encode(float value);
float e8m0_decode(std::uint8_t byte);

}  // namespace quaver
