#include "ops/cuda/product.h"

#include <fmt/format.h>

#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {
namespace {

constexpr int kSide = 16;

struct Elements {
  const void* data;
  std::int64_t stride;
  int swapped;
  int dtype;                  // a DType
  const float* block_scales;  // null without blocks
  std::int64_t block_rows, scale_stride;

  /// As it is multiplied: in blocks, rounded to BF16.
  __device__ float operator()(std::int64_t i, std::int64_t k) const {
    const float element = stored(i, k);
    if (!block_scales) return element;
    const std::int64_t at =
        block_rows == 1 ? k / kBlock * scale_stride + i : i / kBlock * scale_stride + k / kBlock;
    return as_float(round_as<bf16>(element * block_scales[at]));
  }
  __device__ float stored(std::int64_t i, std::int64_t k) const {
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
  const float* const block_scales = factor.block_rows > 0 ? factor.scale_inv : nullptr;
  return {factor.data,  factor.stride,     factor.swapped,     static_cast<int>(factor.dtype),
          block_scales, factor.block_rows, factor.scale_stride};
}
/// The one scale of FP8; null with blocks.
const float* scale_of(const Factor& factor) {
  return factor.block_rows > 0 ? nullptr : factor.scale_inv;
}

bool scales_suit(const Factor& factor, std::int64_t rows, std::int64_t contraction) {
  constexpr std::int64_t kGranule = 4;
  const std::int64_t blocks = blocks_for(contraction, kBlock);
  const std::int64_t stride = factor.block_rows == 1 ? rows : blocks_for(blocks, kGranule) * kGranule;
  return factor.scale_stride == stride && stride % kGranule == 0 && on_pack(factor.scale_inv);
}

}  // namespace

bool is_in_blocks(const Product& product) {
  return product.left.block_rows > 0 || product.right.block_rows > 0;
}

bool suits_library(const Product& product) {
  if (!is_in_blocks(product)) return true;
  const auto [m, n, k] = product.size;
  const std::int64_t left = product.left.block_rows, right = product.right.block_rows;
  return left > 0 && right > 0 && (left == 1 || right == 1) && scales_suit(product.left, m, k) &&
         scales_suit(product.right, n, k);
}

std::string describe_blocks(const Product& product) {
  if (!is_in_blocks(product)) return {};
  return fmt::format(", scales of {} x {} and {} x {}", product.left.block_rows, kBlock,
                     product.right.block_rows, kBlock);
}

void launch_plain_product(const Product& product, const float* bias, Stream stream) {
  const GemmSize& size = product.size;
  with_real(product.out_dtype, [&]<typename T>(T) {
    launch("gemm", multiply<T>, {blocks_for(size.m, kSide) * blocks_for(size.n, kSide), dim3(kSide, kSide)},
           stream, size, elements_of(product.left), elements_of(product.right), scale_of(product.left),
           scale_of(product.right), bias, product.accumulate,
           Matrix<T>{static_cast<T*>(product.out), product.out_stride});
  });
}

}  // namespace quaver::cuda
