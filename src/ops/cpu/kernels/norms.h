/// RMSNorm and LayerNorm over rows.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

/// The forward's operands; `bias` and `mean` are null for RMSNorm, whose mean counts as 0. rstd may be null
/// in RMSNorm.
struct NormForward {
  ConstRows x, addend;  ///< addend null: x is normalised, else their sum
  Rows sum;             ///< receives it
  const float *gain = nullptr, *bias = nullptr;
  float epsilon = 0;
  float *mean = nullptr, *rstd = nullptr;  ///< [rows]
};

struct NormBackward {
  ConstRows dy, x;
  const float *gain = nullptr, *mean = nullptr, *rstd = nullptr;  ///< mean null: RMSNorm
  bool accumulate_dx = false;                                     ///< to the values of dx
  float *dgain = nullptr,
        *dbias = nullptr;  ///< [cols], overwritten with these rows' sums; dbias null for RMSNorm
};

struct NormKernels {
  void (*forward)(Real real, Extent extent, const NormForward& norm, const ProducerRows& y);
  void (*backward)(Real real, Extent extent, const NormBackward& norm, const ProducerRows& dx);
};

}  // namespace quaver::cpu
