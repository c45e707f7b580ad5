#include "ops/cuda/device/cudnn.h"

namespace quaver::cuda {

FoundAttention find_cudnn(DeviceStream) {
  return {nullptr, "this build has no cuDNN (its headers or cudnn_frontend.h were not found)"};
}

}  // namespace quaver::cuda
