/// The CUDA backend's only entry from outside its folder.
#pragma once

#include <memory>

#include "quaver/backend.h"

namespace quaver {

/// Throws Error(usage) with the reason when this build or machine has no CUDA backend.
std::shared_ptr<Backend> make_cuda_backend();

}  // namespace quaver
