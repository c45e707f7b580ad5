#include <algorithm>

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/norm_rows_backward.cuh"
#include "ops/cuda/norm_rows_forward.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 128;  // one block per row
/// Of dynamic shared memory: sm_89 and sm_120 give a block 99 KiB, of which sums take less than one.
constexpr std::int64_t kMostShared = 98 * 1024;
static_assert(TransposedStripe::size(kNormThreads) <= kMostShared);

/// Calls f(values, count) for the elements of a row that this thread takes, in packs of N.
template <int N, typename F>
__device__ void for_packs(std::int64_t cols, const F& f) {
  for (std::int64_t n = static_cast<std::int64_t>(threadIdx.x) * N; n < cols; n += kThreads * N) f(n);
}

/// RMSNorm is LayerNorm with a mean of 0. The variance is taken about the mean, in a second pass. Where there is an addend,
/// x + addend is stored in `sum` first; a thread reads the elements that it has stored.
template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    norm_statistics(Matrix<T> x, Matrix<T> addend, Matrix<T> sum_of_both, std::int64_t cols, float epsilon,
                    bool centred, float* mean, float* rstd) {
  const std::int64_t m = blockIdx.x;
  if (addend.data) {
    for_packs<N>(cols, [&](std::int64_t n) {
      float values[N], added[N];
      x.load(m, n, values);
      addend.load(m, n, added);
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += added[i];
      sum_of_both.store(m, n, values);
    });
    x = sum_of_both;
  }
  const auto mean_of = [&](const auto& term) {
    float sum = 0;
    for_packs<N>(cols, [&](std::int64_t n) {
      float values[N];
      x.load(m, n, values);
#pragma unroll
      for (int i = 0; i < N; ++i) sum += term(values[i]);
    });
    return block_reduce<kThreads>(sum, Add{}) / static_cast<float>(cols);
  };
  const float centre = centred ? mean_of([](float value) { return value; }) : 0.0f;
  const float variance = mean_of([&](float value) { return (value - centre) * (value - centre); });
  if (threadIdx.x != 0) return;
  if (centred) mean[m] = centre;
  rstd[m] = 1.0f / sqrtf(variance + epsilon);
}

/// (x - mean) rstd gain + bias.
template <typename T>
struct Normed {
  Matrix<T> x;
  const float *gain, *bias, *mean, *rstd;
  template <int N>
  __device__ Pack<T, N> read(std::int64_t m, std::int64_t n) const {
    return x.template pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(std::int64_t m, std::int64_t n, const Pack<T, N>& read,
                             float (&result)[1][N]) const {
    float values[N];
    widen(read, values);
    const float centre = mean ? mean[m] : 0.0f, factor = rstd[m];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float scaled = (values[i] - centre) * factor;
      result[0][i] = bias ? fmaf(scaled, gain[n + i], bias[n + i]) : scaled * gain[n + i];
    }
  }
};

template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    norm_backward(NormGradient<T> in, std::int64_t cols, bool accumulate, Matrix<T> dx) {
  const std::int64_t m = blockIdx.x;
  const float centre = in.mean ? in.mean[m] : 0.0f, rstd = in.rstd[m];
  const auto load = [&](std::int64_t n, float(&xhat)[N], float(&dxhat)[N]) {
    in.x.load(m, n, xhat);
    in.dy.load(m, n, dxhat);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      xhat[i] = (xhat[i] - centre) * rstd;
      dxhat[i] = dxhat[i] * in.gain[n + i];
    }
  };
  float products = 0, gradients = 0, xhat[N], dxhat[N];
  for_packs<N>(cols, [&](std::int64_t n) {
    load(n, xhat, dxhat);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      products += dxhat[i] * xhat[i];
      gradients += dxhat[i];
    }
  });
  const float width = static_cast<float>(cols);
  const float mean_product = block_reduce<kThreads>(products, Add{}) / width;
  const float mean_gradient = in.mean ? block_reduce<kThreads>(gradients, Add{}) / width : 0.0f;
  for_packs<N>(cols, [&](std::int64_t n) {
    load(n, xhat, dxhat);
    float result[N];
    if (accumulate) dx.load(m, n, result);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float value = rstd * (dxhat[i] - mean_product * xhat[i] - mean_gradient);
      result[i] = accumulate ? result[i] + value : value;
    }
    dx.store(m, n, result);
  });
}

float* floats_of(const Tensor& tensor) {
  return tensor ? tensor.data<float>() : nullptr;
}

/// Threads of a block of norm_rows, one per pack of a row; 0 if they do not fit.
std::int64_t threads_of_row(std::int64_t cols) {
  const std::int64_t threads = blocks_for(cols, kPack * 32) * 32;
  return threads <= kNormThreads ? threads : 0;
}

/// Blocks that keep a device of 132 multiprocessors busy.
constexpr std::int64_t kBusyBlocks = 264;

/// Rows of a block of norm_rows: enough blocks to even out, few enough that a block reads ahead.
std::int64_t forward_rows(std::int64_t rows) {
  constexpr std::int64_t kBlocks = 4096, kMost = 64;
  const std::int64_t fewest = rows < 2 * kNormRows * kBusyBlocks ? kNormRows : 2 * kNormRows;
  return std::clamp(blocks_for(blocks_for(rows, kBlocks), kNormRows) * kNormRows, fewest, kMost);
}
/// If it casts: where stripes are too few, more blocks gain more than whole sectors, which caches then hold.
std::int64_t casting_rows(std::int64_t rows) {
  return rows < kStripeRows * kBusyBlocks ? kNormRows : kStripeRows;
}
/// How norm_rows_backward is launched. The sums depend on blocks and unit, so these are the same on all chips, with a cast or without.
struct BackwardShape {
  std::int64_t blocks, unit;
};
/// At most as many blocks as the 132 multiprocessors of an H100 run at once, with 128 registers a thread.
BackwardShape backward_shape(std::int64_t rows, std::int64_t threads) {
  constexpr std::int64_t kMultiprocessors = 132, kWarps = kFewWarpsThreads / 32;
  const std::int64_t most = kMultiprocessors * std::max(std::int64_t{1}, kWarps / (threads / 32));
  const std::int64_t share = blocks_for(rows, most);
  if (share < kStripeRows) {
    const std::int64_t unit = blocks_for(share, kNormRows) * kNormRows;
    return {blocks_for(rows, unit), unit};
  }
  return {std::min(most, blocks_for(rows, kStripeRows)), kStripeRows};
}

/// Whether norm_rows may cast to `output`: transposed rows are written in whole chunks of 16 bytes.
bool stripes_fit(const Output& output, std::int64_t rows) {
  const Tensor& transposed = output.quantized.transposed;
  return packs(output) && (!transposed || (rows % kChunkRows == 0 && transposed.row_stride() % 16 == 0 &&
                                           on_pack(transposed.raw())));
}

struct ForwardArguments {
  const char* name;
  const NormInput& input;
  const Tensor &gain, &bias, &mean, &rstd;
  bool centred;
};

/// Statistics that the caller does not want go to temporary memory.
void forward(const ForwardArguments& norm, float epsilon, const Output& y, Backend& backend, Stream stream) {
  const Tensor& x = norm.input.x;
  const std::int64_t rows = x.rows(), cols = x.cols();
  const Tensor rstd = norm.rstd ? norm.rstd : backend.allocate(DType::f32, {rows});
  const Tensor mean = norm.mean || !norm.centred ? norm.mean : backend.allocate(DType::f32, {rows});
  const bool pack = all_pack({x, norm.input.addend, norm.input.sum});
  const std::int64_t threads = threads_of_row(cols);
  const bool fits =
      threads > 0 && rows > 0 && pack && on_pack(norm.gain.raw()) && on_pack(floats_of(norm.bias));
  const bool casts = fits && y.quantized.defined() && stripes_fit(y, rows);
  const bool in_one_pass = fits && (casts || (!y.quantized.defined() && packs(y)));
  with_real(x.dtype(), [&]<typename T>(T) {
    if (fits) {
      const std::int64_t block_rows = casts ? casting_rows(rows) : forward_rows(rows);
      const bool adds = static_cast<bool>(norm.input.addend);
      auto kernel = casts ? (adds ? norm_rows<true, true, false, T> : norm_rows<false, true, false, T>)
                          : (adds ? norm_rows<true, false, false, T> : norm_rows<false, false, false, T>);
      std::int64_t shared = block_rows == kStripeRows && casts ? TransposedStripe::size(threads) : 0;
      if constexpr (kPairs<T, kPack>) {
        const std::int64_t with_rows = shared + RowsAhead<T, 1, kNormRows>::size(threads);
        if (casts && !adds && with_rows <= kMostShared) {
          kernel = norm_rows<false, true, true, T>;
          shared = with_rows;
        }
      }
      launch(norm.name, kernel, {blocks_for(rows, block_rows), threads, static_cast<std::size_t>(shared)},
             stream,
             NormRows<T>{matrix_of<T>(x), matrix_of<T>(norm.input.addend), matrix_of<T>(norm.input.sum),
                         norm.gain.data<float>(), floats_of(norm.bias), floats_of(mean), rstd.data<float>(),
                         rows, cols},
             epsilon, static_cast<int>(norm.centred), block_rows, in_one_pass ? sink_of<T>(y) : Sink<T>{});
      if (in_one_pass) return;
    } else {
      const auto statistics = pack ? norm_statistics<kPack, T> : norm_statistics<1, T>;
      launch(norm.name, statistics, {rows, kThreads}, stream, matrix_of<T>(x),
             matrix_of<T>(norm.input.addend), matrix_of<T>(norm.input.sum), cols, epsilon, norm.centred,
             floats_of(mean), rstd.data<float>());
    }
    produce<T, 1>(norm.name,
                  Normed<T>{matrix_of<T>(norm.input.normed()), norm.gain.data<float>(), floats_of(norm.bias),
                            floats_of(mean), rstd.data<float>()},
                  {y}, rows, cols, pack, stream);
  });
}

struct BackwardArguments {
  const char* name;
  const Tensor &dy, &x, &gain, &mean, &rstd;
  const Output& dx;
  const Tensor &dgain, &dbias;
};

template <bool kCentred, bool kCasts, typename T>
void backward_of_rows(const BackwardArguments& norm, const NormGradient<T>& in, const Output& dx,
                      bool accumulate_dx, Backend& backend, Stream stream) {
  constexpr int kSums = kCentred ? 2 : 1;
  const std::int64_t rows = norm.x.rows(), cols = norm.x.cols(), threads = threads_of_row(cols);
  const BackwardShape shape = backward_shape(rows, threads);
  const Tensor partials = backend.allocate(DType::f32, {kSums * shape.blocks, cols});
  std::int64_t shared = kCasts && shape.unit == kStripeRows ? TransposedStripe::size(threads) : 0;
  auto kernel = norm_rows_backward<kCentred, kCasts, false, T>;
  if constexpr (kPairs<T, kPack>) {
    const std::int64_t with_rows = shared + GradientRowsAhead<T>::size(threads);
    if (with_rows <= kMostShared) {
      kernel = norm_rows_backward<kCentred, kCasts, true, T>;
      shared = with_rows;
    }
  }
  launch(norm.name, kernel, {shape.blocks, threads, static_cast<std::size_t>(shared)}, stream, in, rows, cols,
         static_cast<int>(shape.unit), static_cast<int>(accumulate_dx), sink_of<T>(dx),
         partials.data<float>());
  std::array<float*, kSums> sums{norm.dgain.data<float>()};
  if constexpr (kCentred) sums[1] = norm.dbias.data<float>();
  add_partial_sums<kSums>(norm.name, partials, shape.blocks, cols, sums, stream);
}

void backward(const BackwardArguments& norm, bool accumulate_dx, Backend& backend, Stream stream) {
  const std::int64_t rows = norm.x.rows(), cols = norm.x.cols();
  const bool fits = all_pack({norm.dy, norm.x, norm.dx.values}) && rows > 0 && threads_of_row(cols) > 0 &&
                    on_pack(norm.gain.raw());
  const bool casts = fits && norm.dx.quantized.defined() && stripes_fit(norm.dx, rows);
  // What rows in registers do not cast is cast from here.
  Output dx = norm.dx;
  if (!casts) dx = {norm.dx.values ? norm.dx.values : backend.allocate(norm.x.dtype(), {rows, cols}), {}, {}};
  const bool pack = all_pack({norm.dy, norm.x, dx.values});
  with_real(norm.x.dtype(), [&]<typename T>(T) {
    const NormGradient<T> in{matrix_of<T>(norm.dy), matrix_of<T>(norm.x), norm.gain.data<float>(),
                             floats_of(norm.mean), norm.rstd.data<float>()};
    const auto by_rows = [&](auto centred, auto casting) {
      backward_of_rows<centred(), casting()>(norm, in, dx, accumulate_dx, backend, stream);
    };
    constexpr std::true_type kYes;
    constexpr std::false_type kNo;
    if (fits && norm.mean) return casts ? by_rows(kYes, kYes) : by_rows(kYes, kNo);
    if (fits) return casts ? by_rows(kNo, kYes) : by_rows(kNo, kNo);
    // RMSNorm has no bias; its sums of dy go nowhere.
    const Tensor dbias = norm.dbias ? norm.dbias : backend.allocate(DType::f32, {cols});
    const auto kernel = pack ? norm_backward<kPack, T> : norm_backward<1, T>;
    launch(norm.name, kernel, {rows, kThreads}, stream, in, cols, accumulate_dx, matrix_of<T>(dx.values));
    add_column_sums<2>(norm.name, in, rows, cols, {norm.dgain.data<float>(), dbias.data<float>()}, backend,
                       stream);
  });
  if (!casts && norm.dx.quantized.defined())
    backend.cast(dx.values, {{}, norm.dx.quantized, norm.dx.quantizer});
}

}  // namespace

void DeviceBackend::rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                             const Tensor& rstd) {
  check_norm("rms_norm", x, gain, {}, y, {}, rstd);
  forward({"rms_norm", x, gain, {}, {}, rstd, false}, epsilon, y, *this, stream());
}

void DeviceBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                      const Tensor& rstd, bool accumulate_dx, const Output& dx,
                                      const Tensor& dgain) {
  check_norm_backward("rms_norm_backward", dy, x, gain, {}, rstd, accumulate_dx, dx, dgain, {});
  backward({"rms_norm_backward", dy, x, gain, {}, rstd, dx, dgain, {}}, accumulate_dx, *this, stream());
}

void DeviceBackend::layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon,
                               const Output& y, const Tensor& mean, const Tensor& rstd) {
  check_norm("layer_norm", x, gain, bias, y, mean, rstd);
  forward({"layer_norm", x, gain, bias, mean, rstd, true}, epsilon, y, *this, stream());
}

void DeviceBackend::layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                        const Tensor& mean, const Tensor& rstd, bool accumulate_dx,
                                        const Output& dx, const Tensor& dgain, const Tensor& dbias) {
  check_norm_backward("layer_norm_backward", dy, x, gain, mean, rstd, accumulate_dx, dx, dgain, dbias);
  backward({"layer_norm_backward", dy, x, gain, mean, rstd, dx, dgain, dbias}, accumulate_dx, *this,
           stream());
}

}  // namespace quaver::cuda
