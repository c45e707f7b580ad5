#include <limits>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/exponential.cuh"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;  // one block per row

/// e^x. x is a difference from the largest or from the whole sum's logarithm: taken first, it cannot overflow.
__device__ float exponential(float x) {
  return power_of_two(x * kLog2E);
}

/// The sum of e^(x - largest) while terms come.
struct SumOfExponentials {
  float largest = -std::numeric_limits<float>::infinity(), sum = 0;

  __device__ void raise(float to) {
    if (to <= largest) return;
    sum *= exponential(largest - to);
    largest = to;
  }
  template <int N>
  __device__ void add(const float (&x)[N]) {
    float top = x[0];
#pragma unroll
    for (int i = 1; i < N; ++i) top = fmaxf(top, x[i]);
    raise(top);
    // While all terms are -infinity there is nothing to scale.
    const float base = largest == -std::numeric_limits<float>::infinity() ? 0.0f : largest;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exponential(x[i] - base);
  }
};

/// The logarithm of the sum of exponentials of every row, and the losses: one pass, kAtOnce packs of a thread on their way.
template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    row_losses(Matrix<T> logits, std::int64_t cols, const std::int32_t* targets, float* lse, float* losses,
               int* faults) {
  constexpr int kAtOnce = 4, kStep = kThreads * N;
  const std::int64_t m = blockIdx.x;
  SumOfExponentials own;
  for (std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * N; n < cols; n += kAtOnce * kStep) {
    Pack<T, N> packs[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (n + i * kStep < cols) packs[i] = logits.template pack<N>(m, n + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (n + i * kStep >= cols) break;
      float z[N];
      widen(packs[i], z);
      own.add(z);
    }
  }
  const float largest = block_reduce<kThreads>(own.largest, Largest{});
  own.raise(largest);
  const float sum = block_reduce<kThreads>(own.sum, Add{});
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
  Matrix<T> logits;
  const std::int32_t* targets;
  const float* lse;
  double gradient_scale;  // an FP32 number; as wide as a pointer: no padding
  template <int N>
  __device__ Pack<T, N> read(int m, int n) const {
    return logits.template near_pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(int m, int n, const Pack<T, N>& read, float (&result)[1][N]) const {
    float z[N];
    widen(read, z);
    const int target = targets[m];
    const float total = lse[m];
    const int hot = target < n || target >= n + N ? N : target - n;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float difference = exponential(z[i] - total) - (i == hot ? 1.0f : 0.0f);
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
    if (!is_wanted(dlogits)) return;
    produce<T, 1>("cross_entropy",
                  LogitGradient<T>{z, targets.data<std::int32_t>(), lse.data<float>(), gradient_scale},
                  {dlogits}, rows, cols, pack, stream());
  });
}

}  // namespace quaver::cuda
