#include "ops/cuda/device/cublas.h"

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <optional>
#include <vector>

#include "base/check.h"
#include "ops/cuda/device/cublas_loader.h"
#include "ops/cuda/device/errors.h"

namespace quaver::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = 32 << 20;
constexpr int kCandidates = 8;
constexpr int kTimedRuns = 3;
/// A later candidate replaces the heuristic's order only if it is this much faster: measurement noise should
/// not change the order of sums from run to run.
constexpr float kClearlyFaster = 0.95f;

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::e4m3:
      return CUDA_R_8F_E4M3;
    case DType::e5m2:
      return CUDA_R_8F_E5M2;
    default:
      return CUDA_R_32F;
  }
}

/// The largest power of two, up to 256, that divides an address.
unsigned alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256;
  return static_cast<unsigned>(bits & (~bits + 1));
}

/// Everything a plan depends on.
struct PlanKey {
  std::int64_t m, n, k, left_stride, right_stride, out_stride;
  DType left, right, out;
  bool left_swapped, right_swapped, fast, accumulate;
  unsigned left_alignment, right_alignment, out_alignment;
  auto operator<=>(const PlanKey&) const = default;
};

PlanKey key_of(const Product& p) {
  return {p.size.m,
          p.size.n,
          p.size.k,
          p.left.stride,
          p.right.stride,
          p.out_stride,
          p.left.dtype,
          p.right.dtype,
          p.out_dtype,
          p.left.swapped,
          p.right.swapped,
          p.fast_accumulation,
          p.accumulate,
          alignment_of(p.left.data),
          alignment_of(p.right.data),
          alignment_of(p.out)};
}

/// cuBLASLt's matrices are column-major: our row-major result is its transpose, the right operand its A and
/// the left its B.
class Plan {
 public:
  Plan(const CublasFunctions& lt, const Product& p) : lt_(lt) {
    lt.create_matmul(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.right.swapped ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.left.swapped ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (is_fp8(p.left.dtype)) {
      set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<std::int8_t>(p.fast_accumulation));
      set_scales(p);
    }
    a = layout(p.right, p.size.n, p.size.k);
    b = layout(p.left, p.size.m, p.size.k);
    lt.create_layout(&out, type_of(p.out_dtype), static_cast<std::uint64_t>(p.size.n),
                     static_cast<std::uint64_t>(p.size.m), p.out_stride);
  }
  ~Plan() {
    for (cublasLtMatrixLayout_t matrix : {a, b, out}) lt_.destroy_layout(matrix);
    lt_.destroy_matmul(matmul);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void set_scales(const Product& p) {
    if (!is_fp8(p.left.dtype)) return;
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.right.scale_inv);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.left.scale_inv);
  }

  cublasLtMatmulDesc_t matmul = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, out = nullptr;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  ///< none: the library cannot compute this

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    lt_.set_matmul(matmul, attribute, &value, sizeof value);
  }
  cublasLtMatrixLayout_t layout(const Factor& factor, std::int64_t rows, std::int64_t contraction) {
    cublasLtMatrixLayout_t result = nullptr;
    const auto inner = static_cast<std::uint64_t>(factor.swapped ? rows : contraction);
    const auto outer = static_cast<std::uint64_t>(factor.swapped ? contraction : rows);
    lt_.create_layout(&result, type_of(factor.dtype), inner, outer, factor.stride);
    return result;
  }

  const CublasFunctions& lt_;
};

class Cublas final : public MatrixLibrary {
 public:
  explicit Cublas(DeviceStream stream) : stream_(stream), lt_(load_cublas()) {
    const cublasStatus_t status = lt_.create(&handle_);
    if (status != CUBLAS_STATUS_SUCCESS) {
      fail(ErrorKind::failure, "cuda: starting cuBLASLt failed: {}", lt_.status_string(status));
    }
    check(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating cuBLASLt's workspace");
    for (cudaEvent_t& event : timer_) check(cudaEventCreate(&event), "creating an event");
  }
  ~Cublas() override {
    plans_.clear();
    for (cudaEvent_t event : timer_) cudaEventDestroy(event);
    cudaFree(workspace_);
    lt_.destroy(handle_);
  }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  std::optional<bool> can_multiply(const Product& product) const override {
    const auto plan = plans_.find(key_of(product));
    if (plan == plans_.end()) return std::nullopt;
    return plan->second->algorithm.has_value();
  }

  bool multiply(const Product& product, Backend& backend) override {
    const PlanKey key = key_of(product);
    auto& plan = plans_[key];
    if (!plan) {
      plan = std::make_unique<Plan>(lt_, product);
      plan->algorithm = choose(*plan, product, backend);
    }
    if (!plan->algorithm) return false;
    plan->set_scales(product);
    const cublasStatus_t status = run(*plan, *plan->algorithm, product, product.out);
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    fail(ErrorKind::failure, "cuda: cuBLASLt failed for a product of {} x {} x {}: {}", product.size.m,
         product.size.n, product.size.k, lt_.status_string(status));
  }

 private:
  cublasStatus_t run(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p, void* out) {
    const float alpha = 1, beta = p.accumulate ? 1 : 0;
    return lt_.matmul(handle_, plan.matmul, &alpha, p.right.data, plan.a, p.left.data, plan.b, &beta, out,
                      plan.out, out, plan.out, &algorithm, workspace_, kWorkspaceBytes, stream_);
  }

  std::vector<cublasLtMatmulAlgo_t> candidates(const Plan& plan, const Product& p) {
    cublasLtMatmulPreference_t preference = nullptr;
    lt_.create_preference(&preference);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      lt_.set_preference(preference, attribute, &value, sizeof value);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    // Contractions cut in parts are added up in FP32, never in the result's type.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t{alignment_of(p.right.data)});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t{alignment_of(p.left.data)});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t{alignment_of(p.out)});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t{alignment_of(p.out)});
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
    int count = 0;
    const cublasStatus_t status = lt_.heuristic(handle_, plan.matmul, plan.a, plan.b, plan.out, plan.out,
                                                preference, kCandidates, results.data(), &count);
    lt_.destroy_preference(preference);
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
    }
    return algorithms;
  }

  /// Times the candidates on the operands themselves, into memory of its own.
  std::optional<cublasLtMatmulAlgo_t> choose(const Plan& plan, const Product& p, Backend& backend) {
    const std::vector<cublasLtMatmulAlgo_t> algorithms = candidates(plan, p);
    if (algorithms.empty()) return std::nullopt;
    const Tensor out = backend.allocate(
        DType::u8, {p.size.m * p.out_stride * static_cast<std::int64_t>(size_of(p.out_dtype)) + 256});
    // As aligned as the real result and not more: some algorithms ask for it.
    char* const at = static_cast<char*>(out.raw()) + alignment_of(p.out) % 256;
    std::optional<cublasLtMatmulAlgo_t> best;
    float best_time = 0;
    for (const cublasLtMatmulAlgo_t& algorithm : algorithms) {
      const std::optional<float> time = time_of(plan, algorithm, p, at);
      if (!time || (best && *time > kClearlyFaster * best_time)) continue;
      best = algorithm;
      best_time = *time;
    }
    return best;
  }

  std::optional<float> time_of(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p,
                               void* out) {
    if (run(plan, algorithm, p, out) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    check(cudaEventRecord(timer_[0], stream_), "recording an event");
    for (int i = 0; i < kTimedRuns; ++i) run(plan, algorithm, p, out);
    check(cudaEventRecord(timer_[1], stream_), "recording an event");
    check(cudaEventSynchronize(timer_[1]), "timing a matrix product");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, timer_[0], timer_[1]), "timing a matrix product");
    return milliseconds;
  }

  DeviceStream stream_;
  CublasFunctions lt_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  cudaEvent_t timer_[2] = {};
  std::map<PlanKey, std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<MatrixLibrary> make_cublas(DeviceStream stream) {
  return std::make_unique<Cublas>(stream);
}

}  // namespace quaver::cuda
