/// Table look-ups and their gradients.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

struct EmbeddingKernels {
  /// out[m] = table[tokens[m]] + position_table[positions[m]]; the latter two may be null. Tables are [_, cols]
  /// of type `tables`, out is of type `real`.
  void (*gather)(Real real, Extent extent, const std::int32_t* tokens, Real tables, const void* table,
                 const std::int32_t* positions, const void* position_table, Rows out);
  /// table[rows_of[m]] += x[m], ascending m, for `extent.cols` columns of a table whose rows are `stride`
  /// apart.
  void (*scatter_add)(Real real, Extent extent, ConstRows x, const std::int32_t* rows_of, float* table,
                      std::int64_t stride);
};

}  // namespace quaver::cpu
