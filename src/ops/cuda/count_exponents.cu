#include "ops/cuda/device_backend.h"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads == kExponents);
constexpr std::int64_t kPerBlock = 1 << 14;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_all(Matrix<T> x, std::int64_t cols, std::int64_t elements, unsigned long long* counts) {
  __shared__ unsigned of_block[kExponents];
  of_block[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kPerBlock;
  const std::int64_t end = min(elements, begin + kPerBlock);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const unsigned bits = __float_as_uint(x(i / cols, i % cols));
    atomicAdd(of_block + (bits >> 23 & 0xFF), 1u);
  }
  __syncthreads();
  const unsigned count = of_block[threadIdx.x];
  if (count) atomicAdd(counts + threadIdx.x, static_cast<unsigned long long>(count));
}

}  // namespace

void DeviceBackend::count_exponents(const Tensor& x, const Tensor& counts) {
  check_count_exponents(x, counts);
  const std::int64_t elements = x.elements();
  if (elements == 0) return;
  with_real(x.dtype(), [&]<typename T>(T) {
    launch("count_exponents", count_all<T>, {blocks_for(elements, kPerBlock), kThreads}, stream(),
           matrix_of<T>(x), x.cols(), elements, counts.data<unsigned long long>());
  });
}

}  // namespace quaver::cuda
