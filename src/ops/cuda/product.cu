#include "ops/cuda/product.h"

#include <fmt/format.h>

#include <algorithm>

#include "ops/cuda/chip_types.h"
#include "ops/cuda/e8m0.cuh"
#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/scale_tiles.h"

namespace quaver::cuda {
namespace {

constexpr int kSide = 16;

struct Elements {
  const void* data;
  std::int64_t stride;
  int swapped;
  int dtype;                 // a DType
  const void* block_scales;  // null without blocks
  std::int64_t scale_stride;
  std::int64_t scales;  // a FactorScales

  /// As it is multiplied: in blocks, rounded to BF16.
  __device__ float operator()(std::int64_t i, std::int64_t k) const {
    const float element = stored(i, k);
    return block_scales ? as_float(round_as<bf16>(element * block_scale(i, k))) : element;
  }
  __device__ float block_scale(std::int64_t i, std::int64_t k) const {
    const auto* const numbers = static_cast<const float*>(block_scales);
    switch (static_cast<FactorScales>(scales)) {
      case FactorScales::rows:
        return numbers[k / kBlock * scale_stride + i];
      case FactorScales::squares:
        return numbers[i / kBlock * scale_stride + k / kBlock];
      default:
        return e8m0_value(
            static_cast<const std::uint8_t*>(block_scales)[scale_tile_offset(i, k / kMxBlock, scale_stride)]);
    }
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
                         const float* scale_right, const float* alpha, const float* bias, bool accumulate,
                         Matrix<T> out) {
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
  if (alpha) sum = sum * *alpha;
  if (bias) sum = sum + bias[n];
  if (accumulate) sum = sum + out(m, n);
  *out.address(m, n) = round_as<T>(sum);
}

__global__ void multiply_scales(const float* left, const float* right, float* alpha) {
  *alpha = *left * *right;
}

bool in_blocks(const Factor& factor) {
  return factor.scales != FactorScales::tensor;
}
Elements elements_of(const Factor& factor) {
  return {factor.data,
          factor.stride,
          factor.swapped,
          static_cast<int>(factor.dtype),
          in_blocks(factor) ? factor.scale_inv : nullptr,
          factor.scale_stride,
          static_cast<std::int64_t>(factor.scales)};
}
/// The one scale of FP8; null with blocks.
const float* scale_of(const Factor& factor) {
  return in_blocks(factor) ? nullptr : static_cast<const float*>(factor.scale_inv);
}

/// Elements along the contraction that share a scale; 0 without blocks.
std::int64_t contraction_block(const Factor& factor) {
  if (!in_blocks(factor)) return 0;
  return factor.scales == FactorScales::mx ? kMxBlock : kBlock;
}

bool scales_suit(const Factor& factor, std::int64_t rows, std::int64_t contraction) {
  if (!on_pack(factor.scale_inv)) return false;
  if (factor.scales == FactorScales::mx)
    return factor.scale_stride == scale_tiles_shape(rows, blocks_for(contraction, kMxBlock))[1];
  constexpr std::int64_t kGranule = 4;
  const std::int64_t blocks = blocks_for(contraction, kBlock);
  const std::int64_t stride =
      factor.scales == FactorScales::rows ? rows : blocks_for(blocks, kGranule) * kGranule;
  return factor.scale_stride == stride && stride % kGranule == 0;
}

std::string describe_block(const Factor& factor) {
  return fmt::format("{} x {}", factor.scales == FactorScales::squares ? kBlock : 1,
                     contraction_block(factor));
}

}  // namespace

bool is_in_blocks(const Product& product) {
  return in_blocks(product.left) || in_blocks(product.right);
}

std::int64_t contraction_block(const Product& product) {
  const std::int64_t left = contraction_block(product.left);
  return left == contraction_block(product.right) ? left : 0;
}

bool suits_library(const Product& product) {
  if (!is_in_blocks(product)) return true;
  const auto [m, n, k] = product.size;
  const bool both_square =
      product.left.scales == FactorScales::squares && product.right.scales == FactorScales::squares;
  return contraction_block(product) > 0 && !both_square && scales_suit(product.left, m, k) &&
         scales_suit(product.right, n, k);
}

std::string describe_blocks(const Product& product) {
  if (!is_in_blocks(product)) return {};
  return fmt::format(", scales of {} and {}", describe_block(product.left), describe_block(product.right));
}

std::vector<Product> mx_probes(bool any_layout, void* memory) {
  constexpr std::int64_t kSize = 256;
  const auto factor = [&](bool swapped) {
    return Factor{memory,
                  kSize,
                  swapped && any_layout,
                  DType::e4m3,
                  memory,
                  FactorScales::mx,
                  scale_tiles_shape(kSize, kSize / kMxBlock)[1]};
  };
  const auto product = [&](bool left_swapped, bool right_swapped, bool accumulate, DType out) {
    return Product{{kSize, kSize, kSize},
                   factor(left_swapped),
                   factor(right_swapped),
                   false,
                   accumulate,
                   memory,
                   kSize,
                   out};
  };
  return {product(false, false, false, DType::bf16), product(false, true, false, DType::bf16),
          product(true, true, true, DType::f32)};
}

bool takes_unit_scales(int chip, const Product& product) {
  const auto suits = [](const Factor& factor) {
    return is_fp8(factor.dtype) && factor.scales == FactorScales::tensor && !factor.swapped;
  };
  return doubles_in_blocks(chip) && suits(product.left) && suits(product.right) &&
         product.size.k % kMxBlock == 0;
}

std::int64_t unit_scale_bytes(const Product& product) {
  const auto [m, n, k] = product.size;
  const Shape shape = scale_tiles_shape(std::max(m, n), blocks_for(k, kMxBlock));
  return shape[0] * shape[1];
}

Product with_unit_scales(const Product& product, const void* units) {
  Product result = product;
  for (Factor* factor : {&result.left, &result.right}) {
    factor->scale_inv = units;
    factor->scales = FactorScales::mx;
    factor->scale_stride = scale_tiles_shape(1, blocks_for(product.size.k, kMxBlock))[1];
  }
  return result;
}

void start_scale_product(const Product& product, float* alpha, DeviceStream stream) {
  start_kernel("scale_product", multiply_scales, {1, 1}, stream, scale_of(product.left),
               scale_of(product.right), alpha);
}

void launch_plain_product(const Product& product, const float* bias, Stream stream, const float* alpha) {
  const GemmSize& size = product.size;
  with_real(product.out_dtype, [&]<typename T>(T) {
    launch("gemm", multiply<T>, {blocks_for(size.m, kSide) * blocks_for(size.n, kSide), dim3(kSide, kSide)},
           stream, size, elements_of(product.left), elements_of(product.right), scale_of(product.left),
           scale_of(product.right), alpha, bias, product.accumulate,
           Matrix<T>{static_cast<T*>(product.out), product.out_stride});
  });
}

}  // namespace quaver::cuda
