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

/// The reference's operations in its order.
__global__ void __launch_bounds__(kThreads)
    adamw_step(AdamWFactors f, const float* norm, const float* gradient, float* value, float* m, float* v,
               std::int64_t count) {
  const float length = *norm;
  if (!(fabsf(length) < HUGE_VALF)) return;
  const float clip = f.max_norm > 0 ? fminf(1.0f, f.max_norm / length) : 1.0f;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const float g = gradient[i] * clip;
    const float m_new = f.beta1 * m[i] + (1 - f.beta1) * g;
    const float v_new = f.beta2 * v[i] + (1 - f.beta2) * g * g;
    const float w = value[i];
    m[i] = m_new;
    v[i] = v_new;
    value[i] =
        w - f.lr * (m_new / f.correction1 / (sqrtf(v_new / f.correction2) + f.epsilon) + f.weight_decay * w);
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

void DeviceBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm, const Tensor& gradient,
                          const Tensor& value, const Tensor& m, const Tensor& v) {
  check_adamw(norm, gradient, value, m, v);
  const AdamWFactors factors{step.lr,
                             step.beta1,
                             step.beta2,
                             step.epsilon,
                             step.weight_decay,
                             max_norm,
                             correction(step.beta1, step.step),
                             correction(step.beta2, step.step)};
  constexpr std::int64_t kPerThread = 4;
  launch("adamw", adamw_step, {blocks_for(value.elements(), kThreads * kPerThread), kThreads}, stream(),
         factors, norm.data<float>(), gradient.data<float>(), value.data<float>(), m.data<float>(),
         v.data<float>(), value.elements());
}

}  // namespace quaver::cuda
