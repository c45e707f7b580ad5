#include "ops/cuda/device/errors.h"

#include "base/check.h"

namespace quaver::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  fail(ErrorKind::failure, "cuda: {} failed: {} ({}){}", what, cudaGetErrorString(status),
       cudaGetErrorName(status),
       status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure
           ? "; the device cannot be used any more by this process. CUDA_LAUNCH_BLOCKING=1 names the kernel "
             "at fault"
           : "");
}

void check_launch(const char* name) {
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  fail(ErrorKind::failure, "cuda: kernel {} (or one before it) failed: {} ({})", name,
       cudaGetErrorString(status), cudaGetErrorName(status));
}

void allow_shared_memory(const void* kernel, const char* name, std::size_t bytes) {
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not sticky
  fail(ErrorKind::failure,
       "cuda: kernel {} needs {} bytes of shared memory per block, more than this GPU has", name, bytes);
}

}  // namespace quaver::cuda
