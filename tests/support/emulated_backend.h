/// The CUDA backend in the launch emulation: all of its own code, on host memory.
#pragma once

#include <memory>

#include "quaver/backend.h"

namespace quaver::testing {

/// Products go through a library that asks of FP8 operands what cuBLASLt asks, unless `plain_products`. `records`: what
/// run_repeated meets again is repeated as recorded; else the device refuses to record.
std::shared_ptr<Backend> make_emulated_backend(bool plain_products = false, bool records = true);

}  // namespace quaver::testing
