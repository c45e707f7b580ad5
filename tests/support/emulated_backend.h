/// The CUDA backend in the launch emulation: all of its own code, on host memory.
#pragma once

#include <memory>
#include <optional>

#include "quaver/backend.h"

namespace quaver::testing {

/// Products go through a library that asks of FP8 operands what cuBLASLt asks, unless `plain_products`. `records`: what
/// run_repeated meets again is repeated as recorded; else the device refuses to record. `chip` (90 for sm_90): operands in layouts
/// and blocks that cuBLASLt 13.1 multiplies on that chip, with scales of 1 wherever it may; without one, in all blocks that it has for
/// any.
std::shared_ptr<Backend> make_emulated_backend(bool plain_products = false, bool records = true,
                                               std::optional<int> chip = {});

}  // namespace quaver::testing
