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
  std::uint8_t largest;  // the code of the largest finite value
  std::uint8_t sign = 0x80, nan = 0x7F;
};

Layout layout_of(DType format) {
  switch (format) {
    case DType::e4m3:
      return {3, 7, 0x7E};
    case DType::e5m2:
      return {2, 15, 0x7B};
    case DType::e2m1:
      return {1, 1, 0x7, 0x8, 0x0};
    default:
      fail(ErrorKind::usage, "fp8: expected e4m3, e5m2 or e2m1, found {}", name_of(format));
  }
}

double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(1023 + exponent) << 52);
}

/// `round` takes a magnitude, in steps between neighbours, to an integer.
template <typename Round>
std::uint8_t encode(const Layout& layout, float value, const Round& round) {
  if (std::isnan(value)) return layout.nan;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint8_t sign = bits >> 31 ? layout.sign : 0;

  // Neighbours are 2^(exponent - mantissa_bits) apart in the value's binade, and no closer than the smallest
  // subnormal.
  const int smallest_exponent = 1 - layout.bias;
  const int exponent = std::max(static_cast<int>(bits >> 23 & 0xFF) - 127, smallest_exponent);
  // Exact in double.
  const double steps = round(std::fabs(value) * power_of_two(layout.mantissa_bits - exponent));
  // The codes of a binade follow those of the one below, so that rounding up into the next one needs no
  // special case.
  const double code = steps + (exponent - smallest_exponent) * (1 << layout.mantissa_bits);
  return sign | static_cast<std::uint8_t>(std::min<double>(code, layout.largest));
}

}  // namespace

float fp8_max(DType format) {
  return fp8_decode(format, layout_of(format).largest);
}

std::uint8_t fp8_encode(DType format, float value) {
  return encode(layout_of(format), value,
                [](double steps) { return std::nearbyint(steps); });  // ties to even
}

std::uint8_t fp8_encode_stochastic(DType format, float value, float uniform) {
  return encode(layout_of(format), value, [uniform](double steps) {
    const double lower = std::floor(steps);
    return lower + (uniform < steps - lower ? 1 : 0);
  });
}

float fp8_decode(DType format, std::uint8_t byte) {
  const Layout layout = layout_of(format);
  const int magnitude = byte & (layout.sign - 1);
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
  return byte & layout.sign ? -value : value;
}

std::uint8_t e8m0_encode(float value) {
  if (std::isnan(value)) return 255;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t exponent = bits >> 23 & 0xFF, mantissa = bits & 0x7FFFFF;
  // Below 2^-126 the exponent field is 0 for numbers on both sides of 2^-127, the smallest E8M0 number.
  const bool above = exponent == 0 ? mantissa > 0x400000 : mantissa > 0;
  return static_cast<std::uint8_t>(std::min(exponent + (above ? 1 : 0), 254u));
}

float e8m0_decode(std::uint8_t byte) {
  if (byte == 255) return std::bit_cast<float>(0x7FC00000u);
  return std::bit_cast<float>(byte == 0 ? 0x400000u : static_cast<std::uint32_t>(byte) << 23);
}

}  // namespace quaver
