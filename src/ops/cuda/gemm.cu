#include <algorithm>
#include <utility>

#include "base/check.h"
#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/produce.cuh"
#include "ops/cuda/product.h"

namespace quaver::cuda {
namespace {

constexpr int kSquare = 32;
constexpr std::int64_t kGranule = 16;  // FP8 sizes that libraries take are multiples of this

__global__ void transpose_bytes(Matrix<std::uint8_t> from, Matrix<std::uint8_t> to, std::int64_t rows,
                                std::int64_t cols) {
  __shared__ std::uint8_t tile[kSquare][kSquare + 4];
  const std::int64_t across = (cols + kSquare - 1) / kSquare;
  const std::int64_t row = blockIdx.x / across * kSquare, column = blockIdx.x % across * kSquare;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  if (row + y < rows && column + x < cols) tile[y][x] = *from.address(row + y, column + x);
  __syncthreads();
  if (column + y < cols && row + x < rows) *to.address(column + y, row + x) = tile[x][y];
}

/// An FP32 product, with bias and what the result held before.
template <typename T>
struct Finish {
  Matrix<float> product;
  const float* bias;
  Matrix<T> old;  // null unless accumulated to
  template <int N>
  struct Operands {
    Pack<float, N> product;
    Pack<T, N> old;
  };
  template <int N>
  __device__ Operands<N> read(std::int64_t m, std::int64_t n) const {
    return {product.pack<N>(m, n), old.data ? old.template pack<N>(m, n) : Pack<T, N>{}};
  }
  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t n, const Operands<N>& read,
                             float (&result)[1][N]) const {
    float before[N];
    widen(read.product, result[0]);
    widen(read.old, before);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (bias) result[0][i] += bias[n + i];
      if (old.data) result[0][i] += before[i];
    }
  }
};

template <typename T>
struct ColumnOf {
  Matrix<T> x;
  __device__ void operator()(std::int64_t m, std::int64_t n, float (&values)[1]) const {
    values[0] = x(m, n);
  }
};

/// Without scales.
Factor factor_of(const Tensor& matrix, bool swapped) {
  return {matrix.raw(), matrix.row_stride(), swapped, matrix.dtype()};
}

std::int64_t padded(std::int64_t size, std::int64_t granule = kGranule) {
  return blocks_for(size, granule) * granule;
}

/// `swapped`: the contraction runs down the operand's rows.
void add_block_scales(Factor& factor, const BlockScales& blocks, Gemm kind, bool swapped) {
  const std::int64_t along = swapped ? blocks.rows : blocks.cols,
                     across = swapped ? blocks.cols : blocks.rows;
  require((along == kBlock && (across == 1 || across == kBlock)) ||
              (along == kMxBlock && across == 1 && blocks.swizzled),
          "{}: an operand in blocks of {} along the contraction and {} across, expected {} along and 1 or {} "
          "across, or {} along with e8m0 scales and 1 across",
          name_of(kind), along, across, kBlock, kBlock, kMxBlock);
  if (blocks.swizzled) {
    factor.scale_inv = blocks.scale_inv.raw();
    factor.scales = FactorScales::mx;
    factor.scale_stride = blocks.scale_inv.cols();
    return;
  }
  const bool as_stored = swapped == (across == 1);
  const Tensor& scales = as_stored ? blocks.scale_inv : blocks.transposed;
  require(scales.defined() && scales.dtype() == DType::f32,
          "{}: an operand in blocks without the f32 scales that cuda multiplies, transposed ones among them; "
          "cast it with "
          "this backend",
          name_of(kind));
  factor.scale_inv = scales.data<float>();
  factor.scales = across == 1 ? FactorScales::rows : FactorScales::squares;
  factor.scale_stride = scales.row_stride();
}

bool is_granular(const Factor& factor) {
  return factor.stride % kGranule == 0 && reinterpret_cast<std::uintptr_t>(factor.data) % kGranule == 0;
}
bool is_granular(const Product& product) {
  const auto [m, n, k] = product.size;
  return m % kGranule == 0 && n % kGranule == 0 && k % kGranule == 0 && is_granular(product.left) &&
         is_granular(product.right);
}

}  // namespace

/// Makes the factor read a copy of its FP8 bytes, of shape `used` outside and along the contraction, with zeros up to `whole`. The result
/// holds the copy until the product is queued.
Tensor DeviceBackend::pad(Factor& factor, Shape used, Shape whole) {
  if (factor.swapped) {
    std::swap(used[0], used[1]);
    std::swap(whole[0], whole[1]);
  }
  const Tensor copy = allocate(DType::u8, whole);
  fill(copy, 0);
  copy_rows(factor.data, static_cast<std::size_t>(factor.stride), copy.raw(),
            static_cast<std::size_t>(copy.cols()), static_cast<std::size_t>(used[1]),
            static_cast<std::size_t>(used[0]));
  factor.data = copy.raw();
  factor.stride = copy.cols();
  return copy;
}

/// False, with nothing queued, if the library cannot compute the product.
bool DeviceBackend::multiply_in_library(const Product& p) {
  const std::optional<bool> known = library_->can_multiply(p);
  if (!known) queue_.stop_listing("a product of a new shape");
  if (!queue_.is_listing()) return library_->multiply(p, *this);
  if (!*known) return false;
  const auto start = [this, p] { library_->multiply(p, *this); };
  const auto with_factor = [&](const Factor& f, const auto&... more) {
    queue_.add("gemm", start, p.size.m, p.size.n, p.size.k, p.fast_accumulation, p.accumulate, p.out,
               p.out_stride, p.out_dtype, f.data, f.stride, f.swapped, f.dtype, f.scale_inv, f.scales,
               f.scale_stride, more...);
  };
  const Factor& r = p.right;
  with_factor(p.left, r.data, r.stride, r.swapped, r.dtype, r.scale_inv, r.scales, r.scale_stride);
  return true;
}

Tensor DeviceBackend::transposed(const Tensor& bytes) {
  const Tensor result = allocate(bytes.dtype(), {bytes.cols(), bytes.rows()});
  launch("transpose", transpose_bytes,
         {blocks_for(bytes.rows(), kSquare) * blocks_for(bytes.cols(), kSquare), dim3(kSquare, kSquare)},
         stream(), matrix_of<std::uint8_t>(bytes), matrix_of<std::uint8_t>(result), bytes.rows(),
         bytes.cols());
  return result;
}

/// FP8 operands become contiguous along the contraction where the device asks for it. `kept` holds a
/// transposed copy until the product is queued.
Factor DeviceBackend::factor(const GemmOperand& operand, Gemm kind, bool swapped, Tensor& kept) {
  const bool transposes = swapped && is_fp8(operand.dtype()) && needs_transposed_fp8();
  if (transposes) kept = operand.transposed ? operand.transposed : transposed(operand.values);
  Factor factor = transposes ? factor_of(kept, false) : factor_of(operand.values, swapped);
  if (operand.blocks.scale_inv) {
    add_block_scales(factor, operand.blocks, kind, swapped);
  } else if (is_fp8(operand.dtype())) {
    factor.scale_inv = operand.scale_inv.data<float>();
  }
  return factor;
}

/// Through an FP32 result of our own, FP8 operands padded where their sizes ask for it, with blocks to whole ones; false if the library
/// cannot compute that either.
bool DeviceBackend::multiply_padded(const Product& product, const Tensor& bias, bool accumulate) {
  const GemmSize& size = product.size;
  Product whole = product;
  Tensor left, right;
  const std::int64_t granule = std::max(contraction_block(product), kGranule);
  if (is_fp8(product.left.dtype) && !(is_granular(product) && size.k % granule == 0)) {
    whole.size = {padded(size.m), padded(size.n), padded(size.k, granule)};
    left = pad(whole.left, {size.m, size.k}, {whole.size.m, whole.size.k});
    right = pad(whole.right, {size.n, size.k}, {whole.size.n, whole.size.k});
  }
  const Tensor sums = allocate(DType::f32, {whole.size.m, whole.size.n});
  whole.accumulate = false;
  whole.out = sums.raw();
  whole.out_stride = sums.cols();
  whole.out_dtype = DType::f32;
  if (!multiply_in_library(whole)) return false;
  last_gemm_ = LastGemm{whole, true, true};
  with_real(product.out_dtype, [&]<typename T>(T) {
    const Matrix<T> out{static_cast<T*>(product.out), product.out_stride};
    const Finish<T> finish{matrix_of<float>(sums), bias ? bias.data<float>() : nullptr,
                           accumulate ? out : Matrix<T>{}};
    const std::array<Matrix<T>, 1> values{out};
    const bool pack = size.n % kPack == 0 && out.stride % kPack == 0 && on_pack(out.data);
    launch("gemm", pack ? produce_values<kPack, 1, T, Finish<T>> : produce_values<1, 1, T, Finish<T>>,
           {blocks_for(size.m * blocks_for(size.n, kPack), kTileThreads), kTileThreads}, stream(), finish,
           values, size.m, size.n);
  });
  return true;
}

void DeviceBackend::gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                         bool accumulate, const Tensor& out) {
  const GemmSize size = check_gemm(kind, a, b, bias, out, OperandForms::blocks);
  if (size.m == 0 || size.n == 0) return;
  Product product{.size = size,
                  .left = {},
                  .right = {},
                  .fast_accumulation = kind == Gemm::fprop,
                  .accumulate = accumulate,
                  .out = out.raw(),
                  .out_stride = out.row_stride(),
                  .out_dtype = out.dtype()};
  Tensor left, right;
  product.left = factor(a, kind, kind == Gemm::wgrad, left);
  product.right = factor(b, kind, kind != Gemm::fprop, right);
  // Sums of blocks are scaled and added in FP32 anyway.
  if (is_in_blocks(product)) product.fast_accumulation = false;
  if (library_ && size.k > 0) {
    // Some of the library's algorithms round the product to BF16 before they add it to a BF16 result.
    const bool rounds_twice = accumulate && out.dtype() == DType::bf16;
    if (!bias && !rounds_twice && multiply_in_library(product)) {
      last_gemm_ = LastGemm{product, true, false};
      return;
    }
    if (multiply_padded(product, bias, accumulate)) return;
  }
  launch_plain_product(product, bias ? bias.data<float>() : nullptr, stream());
  last_gemm_ = LastGemm{product, false, false};
}

std::string DeviceBackend::last_gemm_kernel() const {
  if (!last_gemm_) return {};
  if (!last_gemm_->in_library) return "plain, one thread an element";
  return library_->describe(last_gemm_->product) +
         (last_gemm_->by_fp32_result ? ", through an FP32 result" : "");
}

void DeviceBackend::sum_rows(const Tensor& x, const Tensor& sums) {
  check_sum_rows(x, sums);
  with_real(x.dtype(), [&]<typename T>(T) {
    add_column_sums<1>("sum_rows", ColumnOf<T>{matrix_of<T>(x)}, x.rows(), x.cols(), {sums.data<float>()},
                       *this, stream());
  });
}

}  // namespace quaver::cuda
