#include "base/check.h"
#include "ops/backend_facts.h"
#include "ops/cuda/cuda_backend.h"

namespace quaver {

std::shared_ptr<Backend> make_cuda_backend() {
  fail(ErrorKind::usage, "backend: this build of Quaver has no CUDA backend; choose backend = \"cpu\"");
}

BackendFacts find_cuda_facts() {
  return {.backend = "cuda",
          .missing = "this build of Quaver has no CUDA backend (CMake preset \"cuda\" builds it)"};
}

}  // namespace quaver
