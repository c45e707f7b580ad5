#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/reference/reference_backend.h"

namespace quaver {

std::vector<std::string> backend_names() {
  return {"reference", "cpu", "cuda"};
}

std::shared_ptr<Backend> make_backend(const std::string& name, int threads, Products products) {
  if (name == "reference") return std::make_shared<ReferenceBackend>(products);
  if (name == "cpu") return std::make_shared<CpuBackend>(threads, products);
  if (name == "cuda") return make_cuda_backend();
  fail(ErrorKind::usage, "backend: expected one of {}, found \"{}\"", fmt::join(backend_names(), ", "), name);
}

}  // namespace quaver
