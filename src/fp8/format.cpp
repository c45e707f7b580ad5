#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

struct Layout {
  int mantissa_bits;
  int bias;
  std::uint8_t largest;  // the byte of the largest finite value
};

Layout layout_of(DType format) {
  switch (format) {
    case DType::e4m3:
      return {3, 7, 0x7E};
    case DType::e5m2:
      return {2, 15, 0x7B};
    default:
      fail(ErrorKind::usage, "fp8: expected e4m3 or e5m2, found {}", name_of(format));
  }
}

constexpr std::uint8_t kNan = 0x7F;

double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52);
}

}  // namespace

float fp8_max(DType format) {
  return fp8_decode(format, layout_of(format).largest);
}

std::uint8_t fp8_encode(DType format, float value) {
  const Layout layout = layout_of(format);
  if (std::isnan(value)) return kNan;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80);

  // Neighbours are 2^(exponent - mantissa_bits) apart in the value's binade, and no closer than the smallest
  // subnormal.
  const int smallest_exponent = 1 - layout.bias;
  const int exponent = std::max(static_cast<int>(bits >> 23 & 0xFF) - 127, smallest_exponent);
  // Exact in double; then rounded to an integer, ties to even.
  const double steps = std::nearbyint(std::fabs(value) * power_of_two(layout.mantissa_bits - exponent));
  // The codes of a binade follow those of the one below, so that rounding up into the next one needs no
  // special case.
  const double code = steps + (exponent - smallest_exponent) * (1 << layout.mantissa_bits);
  return sign | static_cast<std::uint8_t>(std::min<double>(code, layout.largest));
}

float fp8_decode(DType format, std::uint8_t byte) {
  const Layout layout = layout_of(format);
  const int magnitude = byte & 0x7F;
  const int exponent = magnitude >> layout.mantissa_bits;
  const int mantissa = magnitude & ((1 << layout.mantissa_bits) - 1);
  float value;
  if (format == DType::e5m2 && magnitude == 0x7C) {
    value = HUGE_VALF;
  } else if (magnitude > layout.largest) {
    value = std::bit_cast<float>(0x7FC00000u);
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), 1 - layout.bias - layout.mantissa_bits);
  } else {
    value = std::ldexp(static_cast<float>(mantissa + (1 << layout.mantissa_bits)),
                       exponent - layout.bias - layout.mantissa_bits);
  }
  return byte & 0x80 ? -value : value;
}

}  // namespace quaver
