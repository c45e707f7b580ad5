#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device/cublas.h"
#include "ops/cuda/device/cudnn.h"
#include "ops/cuda/device/runtime.h"

namespace quaver {

std::shared_ptr<Backend> make_cuda_backend() {
  auto runtime = cuda::make_runtime();
  auto library = cuda::make_cublas(runtime->stream());
  auto attention = cuda::choose_attention(runtime->stream()).library;
  return std::make_shared<cuda::DeviceBackend>(std::move(runtime), std::move(library), std::move(attention));
}

}  // namespace quaver
