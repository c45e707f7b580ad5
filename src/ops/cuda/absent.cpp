#include "base/check.h"
#include "ops/cuda/cuda_backend.h"

namespace quaver {

std::shared_ptr<Backend> make_cuda_backend() {
  fail(ErrorKind::usage, "backend: this build of Quaver has no CUDA backend; choose backend = \"cpu\"");
}

}  // namespace quaver
