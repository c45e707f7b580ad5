#include "ops/cuda/device/errors.h"

#include "base/check.h"
#include "ops/cuda/device_messages.h"

namespace quaver::cuda {

namespace {

CallFailure failure_of(cudaError_t status) {
  return {cudaGetErrorString(status), cudaGetErrorName(status),
          status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure};
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail_call(what, failure_of(status));
}

void check_launch(const char* name) {
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    fail_launch(name, failure_of(status));
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
