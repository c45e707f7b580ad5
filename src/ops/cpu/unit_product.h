/// Matrix products by a matrix unit: how they are cut.
#pragma once

#include "base/threads.h"
#include "ops/cpu/kernels/unit_gemm.h"
#include "quaver/backend.h"

namespace quaver::cpu {

/// out = rows times columns; packed copies are scratch from the backend's arena.
///
/// The unit is so fast that a product is bound by what it reads. One operand is packed once and passes through, the other is kept by the
/// thread that multiplies it. Where all that passes stays in a core's outer cache, what is kept is packed a few lanes at a time,
/// which stay in the innermost one; else a block of lanes at a time, which stays in the outer one while the operand with fewer lanes
/// passes. Blocks are smaller where threads would have none; every sum is one element's alone, so bits do not depend on any of it.
void multiply_by_unit(Backend& backend, const Threads& threads, const UnitGemmKernels& kernels,
                      const Operand& rows, const Operand& columns, const GemmOutput& out);

}  // namespace quaver::cpu
