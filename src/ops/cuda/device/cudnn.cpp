#include "ops/cuda/device/cudnn.h"

#include <dlfcn.h>

#include <exception>
#include <map>
#include <utility>

#include "base/check.h"
#include "ops/cuda/device/cudnn_plan.h"

// The frontend's headers look every function of cuDNN up in this library; they ask for it by this name.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;
}

namespace quaver::cuda {
namespace {

class Cudnn final : public AttentionLibrary {
 public:
  /// Takes the handle.
  explicit Cudnn(cudnnHandle_t handle) : handle_(handle) {}
  ~Cudnn() override {
    plans_.clear();
    cudnn_frontend::detail::destroy_handle(handle_);
  }
  Cudnn(const Cudnn&) = delete;
  Cudnn& operator=(const Cudnn&) = delete;

  std::string describe() const override {
    const std::size_t version = cudnn_frontend::detail::get_backend_version();
    const std::string name =
        fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
    if (refusal_.empty()) return name;
    return fmt::format("{} (not all: {})", name, refusal_);
  }

  std::optional<std::int64_t> workspace(const AttentionCall& call,
                                        const AttentionGradients* gradients) override {
    const auto [at, is_new] = plans_.try_emplace(cudnn_key(call, gradients));
    if (is_new) at->second = make_plan(call, gradients);
    if (!at->second) return std::nullopt;
    return at->second->workspace;
  }

  void run(const AttentionCall& call, const AttentionGradients* gradients, void* memory) override {
    CudnnPlan& plan = *plans_.at(cudnn_key(call, gradients));
    auto operands = cudnn_operands(call, gradients);
    auto status = plan.graph.execute(handle_, operands, memory);
    if (status.is_good()) return;
    fail(ErrorKind::failure, "cuda: cuDNN failed for attention{} of {} x {} queries: {}",
         gradients ? "'s backward" : "", call.shape.batch, call.shape.query_len, status.get_message());
  }

 private:
  std::unique_ptr<CudnnPlan> make_plan(const AttentionCall& call, const AttentionGradients* gradients) {
    MadePlan made;
    try {
      made = make_cudnn_plan(handle_, call, gradients);
    } catch (const std::exception& error) {  // the frontend's loader throws what it does not find
      made.why_not = error.what();
    }
    if (!made.plan) {
      refusal_ = fmt::format("{} of head size {} was refused, {}", gradients ? "backward" : "forward",
                             call.shape.head_dim, made.why_not.substr(0, made.why_not.find('\n')));
    }
    return std::move(made.plan);
  }

  cudnnHandle_t handle_;
  std::map<CudnnKey, std::unique_ptr<CudnnPlan>> plans_;  // null: cuDNN cannot
  std::string refusal_;                                   // the last of those, for reports
};

/// Throws std::runtime_error where a library of CUDA is missing that the frontend loads.
FoundAttention start_cudnn(DeviceStream stream) {
  cudnnHandle_t handle = nullptr;
  cudnnStatus_t status = cudnn_frontend::detail::create_handle(&handle);
  if (status == CUDNN_STATUS_SUCCESS) {
    auto library = std::make_unique<Cudnn>(handle);
    status = cudnn_frontend::detail::set_stream(handle, stream);
    if (status == CUDNN_STATUS_SUCCESS) return {std::move(library), ""};
  }
  return {nullptr, fmt::format("cuDNN does not start: {}", cudnn_frontend::detail::get_error_string(status))};
}

}  // namespace

FoundAttention find_cudnn(DeviceStream stream) {
  const std::string name = fmt::format("libcudnn.so.{}", CUDNN_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* const reason = dlerror();
    return {nullptr, fmt::format("{} was not found ({})", name, reason ? reason : "no reason given")};
  }
  cudnn_frontend::cudnn_dlhandle = library;
  try {
    return start_cudnn(stream);
  } catch (const std::exception& error) {
    return {nullptr, fmt::format("cuDNN does not start: {}", error.what())};
  }
}

}  // namespace quaver::cuda
