#include <algorithm>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kStretch = 1 << 15;  // elements per block of threads
constexpr unsigned kNan = 0x7FC00000u;

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
    refuse_norm_for_casts(const long long* before, std::int64_t slots_before, const long long* after,
                          std::int64_t slots_after, float* norm) {
  const long long more = non_finite_casts(after, slots_after) - non_finite_casts(before, slots_before);
  const long long sum = block_reduce<kThreads>(more, Add{});
  if (threadIdx.x == 0 && sum != 0) *norm = __uint_as_float(kNan);
}

/// Whoever finds a reason writes what all others would.
__global__ void __launch_bounds__(kThreads)
    refuse_norm_for_values(const float* values, std::int64_t count, const int* faults, float* norm) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool refused = index < kFaultKinds && faults[index] != kNoFault;
  if (refused || (index < count && !(fabsf(values[index]) < HUGE_VALF))) *norm = __uint_as_float(kNan);
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

void DeviceBackend::refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) {
  check_refuse_non_finite_casts(before, after, norm);
  launch("refuse_non_finite_casts", refuse_norm_for_casts, {1, kThreads}, stream(), before.data<long long>(),
         before.rows(), after.data<long long>(), after.rows(), norm.data<float>());
}

void DeviceBackend::refuse_non_finite(const Tensor& values, const Tensor& norm) {
  check_refuse_non_finite(values, norm);
  const std::int64_t threads = std::max<std::int64_t>(values.elements(), kFaultKinds);
  launch("refuse_non_finite", refuse_norm_for_values, {blocks_for(threads, kThreads), kThreads}, stream(),
         values.data<float>(), values.elements(), faults_.data<int>(), norm.data<float>());
}

}  // namespace quaver::cuda
