#include "ops/cpu/code_formats.h"

#include <cmath>

#include "quaver/fp8_format.h"

namespace quaver::cpu {

CodeFormat code_format_of(DType format) {
  const float largest = fp8_max(format);
  const std::uint8_t one_code = fp8_encode(format, 1.0f);
  int mantissa_bits = 0;
  while (fp8_decode(format, static_cast<std::uint8_t>(one_code + (1 << mantissa_bits))) < 2.0f)
    ++mantissa_bits;
  const int binades_below_one = one_code >> mantissa_bits;
  return {mantissa_bits,
          static_cast<std::uint32_t>(127 + 1 - binades_below_one),
          largest,
          fp8_encode(format, largest),
          fp8_encode(format, -0.0f),
          fp8_encode(format, std::nanf(""))};
}

std::array<float, 256> decode_table_of(DType format) {
  std::array<float, 256> table;
  for (int code = 0; code < 256; ++code)
    table[static_cast<std::size_t>(code)] = fp8_decode(format, static_cast<std::uint8_t>(code));
  return table;
}

}  // namespace quaver::cpu
