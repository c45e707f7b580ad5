#include "ops/cuda/device/cublas.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "base/check.h"
#include "ops/cuda/chip_types.h"
#include "ops/cuda/device/cublas_plan.h"
#include "ops/cuda/device/errors.h"

namespace quaver::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = 32 << 20;
constexpr int kCandidates = 16;
/// Each candidate runs this often; long ones, whose times vary less, kFewRuns times.
constexpr int kRuns = 9, kFewRuns = 3;
constexpr float kLongMilliseconds = 0.5f;
/// A candidate whose first run takes this much longer than the best is not measured further.
constexpr float kHopeless = 1.3f;
/// A later candidate replaces an earlier one of the heuristic's order only if it is this much faster: measurement noise
/// should not change the order of sums from run to run.
constexpr float kClearlyFaster = 0.97f;
/// More than any second-level cache holds: written before every measured run, because a step meets its weights and
/// activations in memory, not in the cache.
constexpr std::int64_t kPastCaches = 160 << 20;

/// Compute capability of the current device, 90 for 9.0.
int chip() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for its chip");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for its chip");
  return 10 * major + minor;
}

class Cublas final : public MatrixLibrary {
 public:
  explicit Cublas(DeviceStream stream) : stream_(stream), lt_(load_cublas()) {
    const cublasStatus_t status = lt_.create(&handle_);
    if (status != CUBLAS_STATUS_SUCCESS) {
      fail(ErrorKind::failure, "cuda: starting cuBLASLt failed: {}", lt_.status_string(status));
    }
    check(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating cuBLASLt's workspace");
    for (cudaEvent_t& event : timer_) check(cudaEventCreate(&event), "creating an event");
    const float scalars[] = {0, 0, 1};
    check(cudaMalloc(reinterpret_cast<void**>(&scalars_), sizeof scalars), "allocating factors of products");
    check(cudaMemcpyAsync(scalars_, scalars, sizeof scalars, cudaMemcpyHostToDevice, stream_),
          "writing factors of products");
    why_no_blocks_ = why_no_block_products(chip_, lt_.version());
    why_no_mx_ = find_why_no_mx();
  }
  ~Cublas() override {
    plans_.clear();
    for (cudaEvent_t event : timer_) cudaEventDestroy(event);
    cudaFree(workspace_);
    cudaFree(scalars_);
    for (void* block : unit_scales_) cudaFree(block);
    lt_.destroy(handle_);
  }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  std::string why_no_blocks(FactorScales scales) const override {
    return scales == FactorScales::mx ? why_no_mx_ : why_no_blocks_;
  }

  std::optional<bool> can_multiply(const Product& product) const override {
    const auto plan = plans_.find(key_of(product));
    if (plan == plans_.end()) return std::nullopt;
    return plan->second->algorithm.has_value();
  }

  bool multiply(const Product& product, Backend& backend) override {
    const PlanKey key = key_of(product);
    auto& plan = plans_[key];
    if (!plan) plan = choose(product, backend);
    if (!plan->algorithm) return false;
    plan->set_scales(product);
    const cublasStatus_t status = run(*plan, *plan->algorithm, product, product.out);
    if (status == CUBLAS_STATUS_SUCCESS) return true;
    fail(ErrorKind::failure, "cuda: cuBLASLt failed for a product of {} x {} x {}: {}", product.size.m,
         product.size.n, product.size.k, lt_.status_string(status));
  }

  /// Numbers as cublasLt.h has them: CUBLASLT_ALGO_CONFIG_ID, cublasLtMatmulTile_t, cublasLtMatmulStages_t.
  std::string describe(const Product& product) const override {
    const auto plan = plans_.find(key_of(product));
    if (plan == plans_.end() || !plan->second->algorithm) return "cuBLASLt";
    const auto attribute = [&](cublasLtMatmulAlgoConfigAttributes_t which) {
      std::uint32_t value = 0;
      std::size_t written = 0;
      lt_.algorithm_attribute(&*plan->second->algorithm, which, &value, sizeof value, &written);
      return value;
    };
    return fmt::format("cuBLASLt algorithm {}, tile {}, stages {}{}{}", attribute(CUBLASLT_ALGO_CONFIG_ID),
                       attribute(CUBLASLT_ALGO_CONFIG_TILE_ID), attribute(CUBLASLT_ALGO_CONFIG_STAGES_ID),
                       describe_blocks(product),
                       plan->second->unit_scales ? ", in blocks of 32 with scales of 1" : "");
  }

 private:
  /// Asks the heuristic where chip and version know the scale mode.
  std::string find_why_no_mx() {
    std::string why = why_no_mx_products(chip_, lt_.version());
    if (!why.empty()) return why;
    for (const Product& probe : mx_probes(takes_any_fp8_layout(chip_), workspace_)) {
      if (!candidates(Plan(lt_, probe), probe).empty()) continue;
      return fmt::format(
          "cuBLASLt {}.{} has no algorithm on sm_{} for blocks of 32 with E8M0 scales, factors {} and {} "
          "along the contraction, {} result",
          lt_.version() / 10000, lt_.version() / 100 % 100, chip_,
          probe.left.swapped ? "strided" : "contiguous", probe.right.swapped ? "strided" : "contiguous",
          name_of(probe.out_dtype));
    }
    return {};
  }

  cublasStatus_t run(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p, void* out) {
    const float one = 1, old = p.accumulate ? 1 : 0;
    const float *alpha = &one, *beta = &old;
    if (plan.unit_scales) {
      alpha = scalars_;
      beta = scalars_ + (p.accumulate ? 2 : 1);
      start_scale_product(p, scalars_, stream_);
    }
    return lt_.matmul(handle_, plan.matmul, alpha, p.right.data, plan.a, p.left.data, plan.b, beta, out,
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

  /// The product as it stands or, where that is clearly faster, in blocks with scales of 1.
  std::unique_ptr<Plan> choose(const Product& p, Backend& backend) {
    auto plan = std::make_unique<Plan>(lt_, p);
    if (!suits_library(p)) return plan;
    float best = 0;
    plan->algorithm = fastest(*plan, p, backend, best);
    if (!why_no_mx_.empty() || !takes_unit_scales(chip_, p)) return plan;
    auto in_blocks = std::make_unique<Plan>(lt_, p, units(unit_scale_bytes(p)));
    in_blocks->algorithm = fastest(*in_blocks, p, backend, best);
    return in_blocks->algorithm ? std::move(in_blocks) : std::move(plan);
  }

  /// Device memory of at least so many bytes 0x7F. Larger ones are added, because recorded products read the old ones.
  const void* units(std::int64_t bytes) {
    if (bytes <= unit_bytes_) return unit_scales_.back();
    unit_bytes_ = std::max(bytes, 2 * unit_bytes_);
    const auto size = static_cast<std::size_t>(unit_bytes_);
    unit_scales_.emplace_back();
    check(cudaMalloc(&unit_scales_.back(), size), "allocating scales of 1");
    check(cudaMemsetAsync(unit_scales_.back(), 0x7F, size, stream_), "writing scales of 1");
    return unit_scales_.back();
  }

  /// Times the candidates on the operands themselves, into memory of its own. `best_time`: in milliseconds, of another plan, 0 if
  /// there is none; then that of the result, which is nothing unless it is clearly faster.
  std::optional<cublasLtMatmulAlgo_t> fastest(const Plan& plan, const Product& p, Backend& backend,
                                              float& best_time) {
    const std::vector<cublasLtMatmulAlgo_t> algorithms = candidates(plan, p);
    if (algorithms.empty()) return std::nullopt;
    const Tensor out = backend.allocate(
        DType::u8, {p.size.m * p.out_stride * static_cast<std::int64_t>(size_of(p.out_dtype)) + 256});
    const Tensor evicted = backend.allocate(DType::u8, {kPastCaches});
    // As aligned as the real result and not more: some algorithms ask for it.
    char* const at = static_cast<char*>(out.raw()) + alignment_of(p.out) % 256;
    std::optional<cublasLtMatmulAlgo_t> best;
    for (const cublasLtMatmulAlgo_t& algorithm : algorithms) {
      const std::optional<float> time = time_of(plan, algorithm, p, at, evicted, best_time);
      if (!time || (best_time > 0 && *time > kClearlyFaster * best_time)) continue;
      best = algorithm;
      best_time = *time;
    }
    return best;
  }

  /// The median time of a run, in milliseconds; nothing if the algorithm fails. `best`: of other candidates, 0 if none.
  std::optional<float> time_of(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p,
                               void* out, const Tensor& evicted, float best) {
    if (run(plan, algorithm, p, out) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
    std::vector<float> times;
    do {
      check(cudaMemsetAsync(evicted.raw(), 0, static_cast<std::size_t>(evicted.elements()), stream_),
            "emptying caches");
      check(cudaEventRecord(timer_[0], stream_), "recording an event");
      run(plan, algorithm, p, out);
      check(cudaEventRecord(timer_[1], stream_), "recording an event");
      check(cudaEventSynchronize(timer_[1]), "timing a matrix product");
      times.emplace_back();
      check(cudaEventElapsedTime(&times.back(), timer_[0], timer_[1]), "timing a matrix product");
      if (best > 0 && times.front() > kHopeless * best) return times.front();
    } while (static_cast<int>(times.size()) < (times.front() > kLongMilliseconds ? kFewRuns : kRuns));
    const auto median = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), median, times.end());
    return *median;
  }

  DeviceStream stream_;
  int chip_ = chip();
  CublasFunctions lt_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  float* scalars_ = nullptr;  ///< on the device: alpha of the newest product in blocks with scales of 1, 0, 1
  std::vector<void*> unit_scales_;
  std::int64_t unit_bytes_ = 0;  ///< of the last of them
  cudaEvent_t timer_[2] = {};
  std::string why_no_blocks_, why_no_mx_;
  std::map<PlanKey, std::unique_ptr<Plan>> plans_;
};

}  // namespace

std::unique_ptr<MatrixLibrary> make_cublas(DeviceStream stream) {
  return std::make_unique<Cublas>(stream);
}

}  // namespace quaver::cuda
