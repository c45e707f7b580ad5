/// Element types as kernels see them, read off the codes themselves: the formats are described once (fp8/format.cpp).
#pragma once

#include <array>

#include "ops/cpu/kernels/block_cast.h"
#include "quaver/tensor.h"

namespace quaver::cpu {

CodeFormat code_format_of(DType format);

/// The number of every code.
std::array<float, 256> decode_table_of(DType format);

}  // namespace quaver::cpu
