#include "support/test_backends.h"

#include "ops/reference/reference_backend.h"
#include "quaver/error.h"
#include "support/emulated_backend.h"

#ifdef QUAVER_CUDA
#include "ops/cuda/device/runtime.h"
#endif

namespace quaver::testing {
namespace {

struct CudaBackend {
  std::shared_ptr<Backend> backend;
  std::string why_not;
};

const CudaBackend& cuda_backend() {
  static const CudaBackend found = [] {
    try {
      return CudaBackend{make_backend("cuda"), ""};
    } catch (const Error& error) {
      return CudaBackend{nullptr, error.what()};
    }
  }();
  return found;
}

}  // namespace

std::vector<std::string> test_backends() {
  std::vector<std::string> names{"reference", "cpu", "emulation"};
  if (cuda_backend().backend) names.push_back("cuda");
  return names;
}

std::string why_no_cuda() {
  return cuda_backend().why_not;
}

std::shared_ptr<Backend> make_test_backend(const std::string& name) {
  if (name == "emulation") return make_emulated_backend();
  return name == "cuda" ? cuda_backend().backend : make_backend(name, 2);
}

std::shared_ptr<Backend> make_shared_reference() {
#ifdef QUAVER_CUDA
  if (cuda_backend().backend) return std::make_shared<ReferenceBackend>(cuda::pinned_memory());
#endif
  return make_backend("reference");
}

void finish(Backend& backend) {
  const Tensor number = backend.allocate(DType::u8, {1});
  backend.fill(number, 0);
  std::uint8_t value;
  backend.copy_to_host(number, &value);
}

}  // namespace quaver::testing
