/// Errors of CUDA's calls as quaver::Error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace quaver::cuda {

/// Throws Error(failure) that says what was attempted, unless `status` is success.
void check(cudaError_t status, const char* what);

/// What launch.h asks for, declared there too: that header is for nvcc.
void check_launch(const char* name);
void allow_shared_memory(const void* kernel, const char* name, std::size_t bytes);

}  // namespace quaver::cuda
