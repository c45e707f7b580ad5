/// Casting a real matrix to FP8.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

struct CastKernels {
  /// Stores x in the forms that `out` asks for.
  void (*cast)(Real real, Extent extent, ConstRows x, const ProducerRows& out);
};

}  // namespace quaver::cpu
