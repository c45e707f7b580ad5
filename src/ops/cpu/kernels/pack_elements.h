/// Elements of a matrix as FP32 numbers, exactly, one by one (pack_eights.h: eight at once).
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include <cstdint>

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

struct DecodeTable {
  float value[256];
};

/// All 256 codes of a format with `mantissa` bits of mantissa; infinities only if there are two mantissa bits
/// (e5m2).
constexpr DecodeTable make_decode_table(int mantissa, int bias) {
  DecodeTable table{};
  const int exponents = 1 << (7 - mantissa);
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code & 127) >> mantissa, fraction = code & ((1 << mantissa) - 1);
    double magnitude = exponent == 0 ? fraction : fraction + (1 << mantissa);
    for (int e = exponent == 0 ? 1 : exponent; e < bias + mantissa; ++e) magnitude /= 2;
    for (int e = bias + mantissa; e < exponent; ++e) magnitude *= 2;
    if (mantissa == 2 && exponent == exponents - 1)
      magnitude = fraction == 0 ? __builtin_inf() : __builtin_nan("");
    if (mantissa == 3 && (code & 127) == 127) magnitude = __builtin_nan("");
    table.value[code] = static_cast<float>(code < 128 ? magnitude : -magnitude);
  }
  return table;
}

constexpr DecodeTable kE4m3 = make_decode_table(3, 7);
constexpr DecodeTable kE5m2 = make_decode_table(2, 15);

struct F32Elements {
  using Type = float;
  static float load(float x) { return x; }
};
struct Bf16Elements {
  using Type = std::uint16_t;
  static float load(std::uint16_t x) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(x) << 16);
  }
};
struct E4m3Elements {
  using Type = std::uint8_t;
  static float load(std::uint8_t x) { return kE4m3.value[x]; }
};
struct E5m2Elements {
  using Type = std::uint8_t;
  static float load(std::uint8_t x) { return kE5m2.value[x]; }
};

/// `lanes` lanes, whose steps follow one another, side by side: panel[i * width + lane] for steps begin <= i < end.
template <class Elements>
void widen_transposed_singly(const typename Elements::Type* from, std::int64_t stride, std::int64_t lanes,
                             std::int64_t begin, std::int64_t end, std::int64_t width, float* panel) {
  for (std::int64_t lane = 0; lane < lanes; ++lane) {
    for (std::int64_t i = begin; i < end; ++i)
      panel[i * width + lane] = Elements::load(from[lane * stride + i]);
  }
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
