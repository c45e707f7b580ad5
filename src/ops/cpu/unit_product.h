/// Matrix products by a matrix unit: how they are cut.
#pragma once

#include "base/threads.h"
#include "ops/cpu/kernels/gemm.h"
#include "quaver/backend.h"

namespace quaver::cpu {

/// out = rows times columns; packed copies are scratch from the backend's arena.
///
/// The unit is so fast that a product is bound by what it reads. The operand with fewer lanes is packed once, the other a block of
/// lanes at a time by the thread that multiplies it, which keeps it in its outer private cache while the first passes through.
/// Blocks are smaller where threads would have none; every sum is one element's alone, so bits do not depend on blocks.
void multiply_by_unit(Backend& backend, const Threads& threads, const GemmKernels& kernels,
                      const Operand& rows, const Operand& columns, const GemmOutput& out);

}  // namespace quaver::cpu
