/// Matrix products by cuBLASLt.
#pragma once

#include <memory>

#include "ops/cuda/device_backend.h"

namespace quaver::cuda {

/// Throws Error(usage) if the library cannot be loaded.
std::unique_ptr<MatrixLibrary> make_cublas(DeviceStream stream);

}  // namespace quaver::cuda
