#include "ops/column_scales.h"

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kLanes = 32, kRows = 8;  // of a block of threads: packs of a row, and rows at once
constexpr int kChooseThreads = 512;

/// amax[n] = max(amax[n], the largest |x[m, n]| of the block's rows), NaN ignored. A thread takes N columns.
template <int N, typename T>
__global__ void __launch_bounds__(kLanes* kRows)
    column_amaxes(Matrix<T> x, float* amax, std::int64_t rows, std::int64_t cols, std::int64_t block_rows) {
  __shared__ float of_row[kRows][N][kLanes];
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  const std::int64_t n = (static_cast<std::int64_t>(blockIdx.x) * kLanes + lane) * N;
  const std::int64_t begin = blockIdx.y * block_rows, end = min(rows, begin + block_rows);
  float largest[N] = {};
  if (n < cols) {
#pragma unroll 4
    for (std::int64_t m = begin + row; m < end; m += kRows) {
      float values[N];
      x.load(m, n, values);
#pragma unroll
      for (int i = 0; i < N; ++i) largest[i] = fmaxf(largest[i], fabsf(values[i]));
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) of_row[row][i][lane] = largest[i];
  __syncthreads();
  // Of N columns a lane, each row of threads finishes some.
  for (int i = row; i < N; i += kRows) {
    if (n >= cols) break;
    float all = 0;
    for (int other = 0; other < kRows; ++other) all = fmaxf(all, of_row[other][i][lane]);
    // Bits of non-negative floats order like the floats.
    if (all > 0) atomicMax(reinterpret_cast<int*>(amax + n + i), __float_as_int(all));
  }
}

/// One block: from the columns' amaxes, which `scale` holds, to the scales.
__global__ void __launch_bounds__(kChooseThreads)
    choose_scales(float* scale, float* inverse, std::int64_t cols) {
  float largest = 0;
  for (std::int64_t n = threadIdx.x; n < cols; n += kChooseThreads) {
    if (is_telling(scale[n])) largest = fmaxf(largest, scale[n]);
  }
  const int exponent = largest_column_exponent(block_reduce<kChooseThreads>(largest, Largest{}));
  for (std::int64_t n = threadIdx.x; n < cols; n += kChooseThreads) {
    const int own = column_scale_exponent(scale[n], exponent);
    scale[n] = power_of_two(own);
    inverse[n] = power_of_two(-own);
  }
}

template <typename T>
struct ScaledColumns {
  Matrix<T> x;
  const float* factors;
  template <int N>
  __device__ Pack<T, N> read(std::int64_t m, std::int64_t n) const {
    return x.template pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t n, const Pack<T, N>& read,
                             float (&result)[1][N]) const {
    float factor[N];
    widen(read, result[0]);
    Matrix<const float>{factors}.load(0, n, factor);
#pragma unroll
    for (int i = 0; i < N; ++i) result[0][i] *= factor[i];
  }
};

}  // namespace

void DeviceBackend::column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) {
  check_column_scales(x, scale, inverse);
  if (x.cols() == 0) return;
  fill(scale, 0);
  const std::int64_t rows = x.rows(), cols = x.cols(), block_rows = rows_per_block(rows);
  with_real(x.dtype(), [&]<typename T>(T) {
    const bool pack = packs(x);
    const std::int64_t across = blocks_for(cols, kLanes * (pack ? kPack : 1));
    launch("column_scales", pack ? column_amaxes<kPack, T> : column_amaxes<1, T>,
           {dim3(static_cast<unsigned>(across), static_cast<unsigned>(blocks_for(rows, block_rows))),
            dim3(kLanes, kRows)},
           stream(), matrix_of<T>(x), scale.data<float>(), rows, cols, block_rows);
  });
  launch("column_scales", choose_scales, {1, kChooseThreads}, stream(), scale.data<float>(),
         inverse.data<float>(), cols);
}

void DeviceBackend::scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) {
  check_scale_columns(x, factors, out);
  with_real(x.dtype(), [&]<typename T>(T) {
    produce<T, 1>("scale_columns", ScaledColumns<T>{matrix_of<T>(x), factors.data<float>()},
                  {Output{out, {}, {}}}, x.rows(), x.cols(), packs(x) && on_pack(factors.raw()), stream());
  });
}

}  // namespace quaver::cuda
