/// One GPU: its memory, its stream, copies.
#pragma once

#include <memory>

#include "ops/cuda/device_backend.h"

namespace quaver::cuda {

/// The first visible GPU. Throws Error(usage) that says what is missing: a driver, a new enough one, a GPU, a
/// supported chip.
std::unique_ptr<DeviceRuntime> make_runtime();

/// Memory of the host that kernels can read and write under the same addresses.
MemorySource pinned_memory();

}  // namespace quaver::cuda
