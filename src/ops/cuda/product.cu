#include "ops/cuda/product.h"

#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {
namespace {

constexpr int kSide = 16;

struct Elements {
  const void* data;
  std::int64_t stride;
  int swapped;
  int dtype;  // a DType

  __device__ float operator()(std::int64_t i, std::int64_t k) const {
    const std::int64_t at = swapped ? k * stride + i : i * stride + k;
    switch (static_cast<DType>(dtype)) {
      case DType::f32:
        return static_cast<const float*>(data)[at];
      case DType::bf16:
        return as_float(static_cast<const bf16*>(data)[at]);
      case DType::e5m2:
        return fp8_value(Fp8::e5m2, static_cast<const std::uint8_t*>(data)[at]);
      default:
        return fp8_value(Fp8::e4m3, static_cast<const std::uint8_t*>(data)[at]);
    }
  }
};

/// One element per thread, summed in ascending order in one accumulator.
template <typename T>
__global__ void multiply(GemmSize size, Elements left, Elements right, const float* scale_left,
                         const float* scale_right, const float* bias, bool accumulate, Matrix<T> out) {
  __shared__ float left_tile[kSide][kSide + 1], right_tile[kSide][kSide + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const std::int64_t across = (size.n + kSide - 1) / kSide;
  const std::int64_t row = blockIdx.x / across * kSide, column = blockIdx.x % across * kSide;
  const std::int64_t m = row + y, n = column + x;
  float sum = 0;
  for (std::int64_t k = 0; k < size.k; k += kSide) {
    const bool inside = k + x < size.k;
    left_tile[y][x] = inside && m < size.m ? left(m, k + x) : 0.0f;
    right_tile[y][x] = inside && column + y < size.n ? right(column + y, k + x) : 0.0f;
    __syncthreads();
    const int length = static_cast<int>(min(size.k - k, std::int64_t{kSide}));
    for (int i = 0; i < length; ++i) sum += left_tile[y][i] * right_tile[x][i];
    __syncthreads();
  }
  if (m >= size.m || n >= size.n) return;
  if (scale_left) sum = sum * (*scale_left * *scale_right);
  if (bias) sum = sum + bias[n];
  if (accumulate) sum = sum + out(m, n);
  *out.address(m, n) = round_as<T>(sum);
}

Elements elements_of(const Factor& factor) {
  return {factor.data, factor.stride, factor.swapped, static_cast<int>(factor.dtype)};
}

}  // namespace

void launch_plain_product(const Product& product, const float* bias, Stream stream) {
  const GemmSize& size = product.size;
  with_real(product.out_dtype, [&]<typename T>(T) {
    launch("gemm", multiply<T>, {blocks_for(size.m, kSide) * blocks_for(size.n, kSide), dim3(kSide, kSide)},
           stream, size, elements_of(product.left), elements_of(product.right), product.left.scale_inv,
           product.right.scale_inv, bias, product.accumulate,
           Matrix<T>{static_cast<T*>(product.out), product.out_stride});
  });
}

}  // namespace quaver::cuda
