#include <algorithm>
#include <array>
#include <cmath>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kStretch = 1 << 15;  // elements per block of threads

/// Several tensors as one list of stretches; small enough to be a kernel's parameter.
struct Stretches {
  static constexpr int kMost = 96;
  const float* data[kMost];
  std::int64_t elements[kMost];
  int first_block[kMost + 1];
  int count;
};

/// partials[block] = the sum of squares of one stretch, in double.
__global__ void __launch_bounds__(kThreads) sum_squares(Stretches stretches, double* partials) {
  const int block = static_cast<int>(blockIdx.x);
  int tensor = 0;
  while (stretches.first_block[tensor + 1] <= block) ++tensor;
  const float* const data = stretches.data[tensor];
  const std::int64_t begin = (block - stretches.first_block[tensor]) * kStretch;
  const std::int64_t end = min(stretches.elements[tensor], begin + kStretch);
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    sum += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  }
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x == 0) partials[block] = sum;
}

__global__ void __launch_bounds__(kThreads)
    norm_of(const double* partials, std::int64_t count, float* result) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x == 0) *result = static_cast<float>(sqrt(sum));
}

struct AdamWFactors {
  float lr, beta1, beta2, epsilon, weight_decay, max_norm, correction1, correction2;
};

constexpr int kStepPack = 4;  // elements that a thread handles at once: 16 bytes
constexpr std::int64_t kStepStretch = 4 * kStepPack * kThreads;  // elements of one tensor per block

/// The tensors of one launch; small enough to be a kernel's parameter.
struct StepTensors {
  static constexpr int kMost = 64;
  struct One {
    const float* gradient;
    float *value, *m, *v;
    std::int64_t elements;
    int decays, packs;  // numbers: no padding
  };
  One tensors[kMost];
  int first_block[kMost];
  std::int64_t count;

  /// The tensor that a block belongs to: the last that begins at or before it.
  __device__ int of_block(int block) const {
    int low = 0, high = static_cast<int>(count);
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};
/// is_usable_norm of quaver/backend.h.
__device__ bool usable(float norm, float max_norm) {
  const float clipped = max_norm > 0 && max_norm < norm ? max_norm : norm;
  return norm < HUGE_VALF && clipped <= 1e19f;
}

/// A thread's share of the NaN and infinities that rows of counters tell of.
__device__ long long non_finite_casts(const long long* counters, std::int64_t slots) {
  long long sum = 0;
  for (std::int64_t slot = threadIdx.x; slot < slots; slot += kThreads) {
    const long long* row = counters + slot * kCastCounters;
    sum += row[kCastNan] + row[kCastInfinite];
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    refuse_norm(const long long* before, std::int64_t slots_before, const long long* after,
                std::int64_t slots_after, float* norm) {
  const long long more = non_finite_casts(after, slots_after) - non_finite_casts(before, slots_before);
  const long long sum = block_reduce<kThreads>(more, Add{});
  if (threadIdx.x == 0 && sum != 0) *norm = __uint_as_float(0x7FC00000u);
}

/// The reference's operations in its order.
__device__ inline void step_element(const AdamWFactors& f, float decay, float clip, float gradient,
                                    float& value, float& m, float& v) {
  const float g = gradient * clip;
  m = f.beta1 * m + (1 - f.beta1) * g;
  v = f.beta2 * v + (1 - f.beta2) * g * g;
  value = value - f.lr * (m / f.correction1 / (sqrtf(v / f.correction2) + f.epsilon) + decay * value);
}

__global__ void __launch_bounds__(kThreads) adamw_step(AdamWFactors f, const float* norm, StepTensors all) {
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const float clip = f.max_norm > 0 ? fminf(1.0f, f.max_norm / length) : 1.0f;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const StepTensors::One& tensor = all.tensors[index];
  const float decay = tensor.decays ? f.weight_decay : 0.0f;
  const std::int64_t begin = (block - all.first_block[index]) * kStepStretch;
  const std::int64_t end = min(tensor.elements, begin + kStepStretch);
  const Matrix<const float> gradients{tensor.gradient};
  const Matrix<float> values{tensor.value}, ms{tensor.m}, vs{tensor.v};
  for (std::int64_t i = begin + static_cast<std::int64_t>(threadIdx.x) * kStepPack; i < end;
       i += kThreads * kStepPack) {
    if (tensor.packs && i + kStepPack <= end) {
      float g[kStepPack], w[kStepPack], m[kStepPack], v[kStepPack];
      gradients.load(0, i, g);
      values.load(0, i, w);
      ms.load(0, i, m);
      vs.load(0, i, v);
#pragma unroll
      for (int j = 0; j < kStepPack; ++j) step_element(f, decay, clip, g[j], w[j], m[j], v[j]);
      values.store(0, i, w);
      ms.store(0, i, m);
      vs.store(0, i, v);
      continue;
    }
    for (std::int64_t j = i; j < min(end, i + kStepPack); ++j)
      step_element(f, decay, clip, tensor.gradient[j], tensor.value[j], tensor.m[j], tensor.v[j]);
  }
}

float correction(float beta, std::int64_t step) {
  return static_cast<float>(1 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
}

/// Takes tensors from the front, as many as fit one launch.
Stretches take(std::span<const Tensor>& tensors) {
  Stretches stretches{};
  int blocks = 0;
  while (!tensors.empty() && stretches.count < Stretches::kMost) {
    const Tensor& tensor = tensors.front();
    tensors = tensors.subspan(1);
    if (tensor.elements() == 0) continue;
    stretches.data[stretches.count] = tensor.data<float>();
    stretches.elements[stretches.count] = tensor.elements();
    blocks += static_cast<int>(blocks_for(tensor.elements(), kStretch));
    stretches.first_block[++stretches.count] = blocks;
  }
  return stretches;
}

/// Takes tensors from the front, as many as fit one launch; `blocks`: of that launch.
StepTensors take(std::span<const AdamWTensor>& tensors, int& blocks) {
  StepTensors taken{};
  blocks = 0;
  while (!tensors.empty() && taken.count < StepTensors::kMost) {
    const auto& [gradient, value, m, v, decays] = tensors.front();
    tensors = tensors.subspan(1);
    if (value.elements() == 0) continue;
    const bool packs =
        on_pack(gradient.raw()) && on_pack(value.raw()) && on_pack(m.raw()) && on_pack(v.raw());
    taken.first_block[taken.count] = blocks;
    taken.tensors[taken.count++] = {gradient.data<float>(),
                                    value.data<float>(),
                                    m.data<float>(),
                                    v.data<float>(),
                                    value.elements(),
                                    decays,
                                    packs};
    blocks += static_cast<int>(blocks_for(value.elements(), kStepStretch));
  }
  return taken;
}

}  // namespace

void DeviceBackend::global_norm(std::span<const Tensor> tensors, const Tensor& result) {
  check_global_norm(tensors, result);
  std::int64_t blocks = 0;
  for (const Tensor& tensor : tensors) blocks += blocks_for(tensor.elements(), kStretch);
  const Tensor partials = allocate(DType::i64, {blocks});  // of double's size
  auto* at = partials.data<double>();
  while (!tensors.empty()) {
    const Stretches stretches = take(tensors);
    const int count = stretches.first_block[stretches.count];
    launch("global_norm", sum_squares, {count, kThreads}, stream(), stretches, at);
    at += count;
  }
  launch("global_norm", norm_of, {1, kThreads}, stream(), partials.data<double>(), blocks,
         result.data<float>());
}

void DeviceBackend::refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) {
  check_refuse_non_finite_casts(before, after, norm);
  launch("refuse_non_finite_casts", refuse_norm, {1, kThreads}, stream(), before.data<long long>(),
         before.rows(), after.data<long long>(), after.rows(), norm.data<float>());
}

void DeviceBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                          std::span<const AdamWTensor> tensors) {
  check_adamw(norm, tensors);
  const AdamWFactors factors{step.lr,
                             step.beta1,
                             step.beta2,
                             step.epsilon,
                             step.weight_decay,
                             max_norm,
                             correction(step.beta1, step.step),
                             correction(step.beta2, step.step)};
  while (!tensors.empty()) {
    int blocks = 0;
    const StepTensors taken = take(tensors, blocks);
    launch("adamw", adamw_step, {blocks, kThreads}, stream(), factors, norm.data<float>(), taken);
  }
}

}  // namespace quaver::cuda
