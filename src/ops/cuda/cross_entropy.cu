#include <limits>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;  // one block per row

/// The logarithm of the sum of exponentials of every row, and the losses.
template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    row_losses(Matrix<T> logits, std::int64_t cols, const std::int32_t* targets, float* lse, float* losses,
               int* faults) {
  const std::int64_t m = blockIdx.x;
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * N; n < cols; n += kThreads * N) {
    float z[N];
    logits.load(m, n, z);
#pragma unroll
    for (int i = 0; i < N; ++i) largest = fmaxf(largest, z[i]);
  }
  largest = block_reduce<kThreads>(largest, Largest{});
  float sum = 0;
  for (std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * N; n < cols; n += kThreads * N) {
    float z[N];
    logits.load(m, n, z);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += expf(z[i] - largest);
  }
  sum = block_reduce<kThreads>(sum, Add{});
  if (threadIdx.x != 0) return;
  const float result = largest + logf(sum);
  const std::int64_t target = targets[m];
  const bool valid = target == -1 || check_index(target, cols, m, kTargetClass, faults);
  lse[m] = result;
  losses[m] = target < 0 || !valid ? 0.0f : result - logits(m, target);
}

/// gradient_scale (softmax(z) - onehot(target)); zeros without target.
template <typename T>
struct LogitGradient {
  static constexpr int kOperands = 1;
  Matrix<T> logits;
  const std::int32_t* targets;
  const float* lse;
  double gradient_scale;  // an FP32 number; as wide as a pointer: no padding
  template <int N>
  __device__ void operator()(std::int64_t m, std::int64_t n, float (&result)[1][N]) const {
    float z[N];
    logits.load(m, n, z);
    const std::int64_t target = targets[m];
    const float total = lse[m];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float difference = expf(z[i] - total) - (n + i == target ? 1.0f : 0.0f);
      result[0][i] = target < 0 ? 0.0f : static_cast<float>(gradient_scale) * difference;
    }
  }
};

}  // namespace

void DeviceBackend::cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                                  const Tensor& losses, const Output& dlogits) {
  check_cross_entropy(logits, targets, losses, dlogits);
  const std::int64_t rows = logits.rows(), cols = logits.cols();
  const Tensor lse = allocate(DType::f32, {rows});
  const bool pack = packs(logits);
  with_real(logits.dtype(), [&]<typename T>(T) {
    const Matrix<T> z = matrix_of<T>(logits);
    launch("cross_entropy", pack ? row_losses<kPack, T> : row_losses<1, T>, {rows, kThreads}, stream(), z,
           cols, targets.data<std::int32_t>(), lse.data<float>(), losses.data<float>(), faults_.data<int>());
    if (!dlogits.values && !dlogits.quantized.defined()) return;
    produce<T, 1>("cross_entropy",
                  LogitGradient<T>{z, targets.data<std::int32_t>(), lse.data<float>(), gradient_scale},
                  {dlogits}, rows, cols, pack, stream());
  });
}

}  // namespace quaver::cuda
