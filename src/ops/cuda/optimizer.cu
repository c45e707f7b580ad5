#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "base/check.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/produce.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kStretch = 1 << 15;  // elements per block of threads

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

struct AdamWFactors {
  float lr, beta1, beta2, epsilon, weight_decay, max_norm, correction1, correction2;
};

constexpr int kStepPack = 4;  // elements that a thread handles at once: 16 bytes
constexpr std::int64_t kStepStretch = 4 * kStepPack * kThreads;  // elements of one tensor per block

/// The tensors of one launch; small enough to be a kernel's parameter.
template <typename OneTensor, int kMostTensors>
struct TensorList {
  using One = OneTensor;
  static constexpr int kMost = kMostTensors;
  One tensors[kMost];
  int first_block[kMost];
  std::int64_t count;

  /// The tensor that a block belongs to: the last that begins at or before it.
  __device__ int of_block(int block) const {
    int low = 0, high = static_cast<int>(count);
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_block[middle] <= block ? low : high) = middle;
    }
    return low;
  }
};

/// is_usable_norm of quaver/backend.h.
__device__ bool usable(float norm, float max_norm) {
  const float clipped = max_norm > 0 && max_norm < norm ? max_norm : norm;
  return norm < HUGE_VALF && clipped <= 1e19f;
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
    refuse_norm(const long long* before, std::int64_t slots_before, const long long* after,
                std::int64_t slots_after, float* norm) {
  const long long more = non_finite_casts(after, slots_after) - non_finite_casts(before, slots_before);
  const long long sum = block_reduce<kThreads>(more, Add{});
  if (threadIdx.x == 0 && sum != 0) *norm = __uint_as_float(0x7FC00000u);
}

/// One without an FP8 copy.
struct StepTensor {
  const float* gradient;
  float *value, *m, *v;
  bf16* copy;  ///< null: none
  std::int64_t elements;
  int decays, packs;  // numbers: no padding
};
using StepTensors = TensorList<StepTensor, 60>;

/// A matrix with one.
struct CastTensor {
  const float* gradient;
  float *value, *m, *v;
  bf16* copy;  ///< null: none
  std::int64_t rows, cols;
  std::array<Sink<float>, 1> sinks;
  std::int64_t decays, packs;  // numbers: no padding
};
using CastTensors = TensorList<CastTensor, 20>;

/// The reference's operations in its order.
__device__ inline void step_element(const AdamWFactors& f, float decay, float clip, float gradient,
                                    float& value, float& m, float& v) {
  const float g = gradient * clip;
  m = f.beta1 * m + (1 - f.beta1) * g;
  v = f.beta2 * v + (1 - f.beta2) * g * g;
  value = value - f.lr * (m / f.correction1 / (sqrtf(v / f.correction2) + f.epsilon) + decay * value);
}

__device__ inline float clip_of(const AdamWFactors& f, float norm) {
  return f.max_norm > 0 ? fminf(1.0f, f.max_norm / norm) : 1.0f;
}

__global__ void __launch_bounds__(kThreads) adamw_step(AdamWFactors f, const float* norm, StepTensors all) {
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const float clip = clip_of(f, length);
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const StepTensor& tensor = all.tensors[index];
  const float decay = tensor.decays ? f.weight_decay : 0.0f;
  const std::int64_t begin = (block - all.first_block[index]) * kStepStretch;
  const std::int64_t end = min(tensor.elements, begin + kStepStretch);
  const Matrix<const float> gradients{tensor.gradient};
  const Matrix<float> values{tensor.value}, ms{tensor.m}, vs{tensor.v};
  const Matrix<bf16> copies{tensor.copy};
  for (std::int64_t i = begin + static_cast<std::int64_t>(threadIdx.x) * kStepPack; i < end;
       i += kThreads * kStepPack) {
    if (tensor.packs && i + kStepPack <= end) {
      float g[kStepPack], w[kStepPack], m[kStepPack], v[kStepPack];
      gradients.load(0, i, g);
      values.load(0, i, w);
      ms.load(0, i, m);
      vs.load(0, i, v);
#pragma unroll
      for (int j = 0; j < kStepPack; ++j) step_element(f, decay, clip, g[j], w[j], m[j], v[j]);
      values.store(0, i, w);
      ms.store(0, i, m);
      vs.store(0, i, v);
      if (tensor.copy) copies.store(0, i, w);
      continue;
    }
    for (std::int64_t j = i; j < min(end, i + kStepPack); ++j) {
      step_element(f, decay, clip, tensor.gradient[j], tensor.value[j], tensor.m[j], tensor.v[j]);
      if (tensor.copy) tensor.copy[j] = round_as<bf16>(tensor.value[j]);
    }
  }
}

/// What `fill_tile` calls: updates elements and hands on their new values.
struct StepOfMatrix {
  static constexpr int kOperands = 4;
  AdamWFactors f;
  float decay, clip;
  Matrix<const float> gradient;
  Matrix<float> value, m, v;
  Matrix<bf16> copy;

  template <int N>
  __device__ void operator()(std::int64_t row, std::int64_t column, float (&results)[1][N]) const {
    float g[N], first[N], second[N];
    gradient.load(row, column, g);
    value.load(row, column, results[0]);
    m.load(row, column, first);
    v.load(row, column, second);
#pragma unroll
    for (int i = 0; i < N; ++i) step_element(f, decay, clip, g[i], results[0][i], first[i], second[i]);
    value.store(row, column, results[0]);
    m.store(row, column, first);
    v.store(row, column, second);
    if (copy.data) copy.store(row, column, results[0]);
  }
};

/// One block per tile of a matrix: the update, and the cast of what it gives.
__global__ void __launch_bounds__(kTileThreads)
    adamw_cast(AdamWFactors f, const float* norm, CastTensors all) {
  __shared__ __align__(16) std::uint8_t bytes[1][kTileCols * kTilePitch];
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const CastTensor& tensor = all.tensors[index];
  const Sink<float>& sink = tensor.sinks[0];
  const std::int64_t rows = tensor.rows, cols = tensor.cols, part = block - all.first_block[index];
  const std::int64_t across = (cols + kTileCols - 1) / kTileCols;
  const OutputTile tile{part / across * kTileRows, part % across * kTileCols, rows, cols};
  const StepOfMatrix step{f,
                          tensor.decays ? f.weight_decay : 0.0f,
                          clip_of(f, length),
                          {tensor.gradient, cols},
                          {tensor.value, cols},
                          {tensor.m, cols},
                          {tensor.v, cols},
                          {tensor.copy, cols}};
  CastTrace traces[1];
  const float scales[1] = {*sink.scale};
  if (tensor.packs) {
    fill_tile_by_packs<1, float>(step, tensor.sinks, tile, scales, traces, bytes);
  } else {
    fill_tile<1, float>(step, tensor.sinks, tile, scales, traces, bytes);
  }
  __syncthreads();
  if (sink.transposed.data) {
    write_transposed(sink.transposed, sink.transposed_packs, bytes[0], tile.row, tile.column, rows, cols);
  }
  record(sink, traces[0]);
  if (part == 0 && threadIdx.x == 0) record_once(sink, rows * cols);
}

float correction(float beta, std::int64_t step) {
  return static_cast<float>(1 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
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

bool all_on_pack(const AdamWTensor& tensor) {
  return on_pack(tensor.gradient.raw()) && on_pack(tensor.value.raw()) && on_pack(tensor.m.raw()) &&
         on_pack(tensor.v.raw()) && (!tensor.copies.bf16 || on_pack(tensor.copies.bf16.raw()));
}

bf16* bf16_copy(const AdamWTensor& tensor) {
  return tensor.copies.bf16 ? tensor.copies.bf16.data<bf16>() : nullptr;
}

/// Its elements, and how many blocks of threads it takes.
std::pair<StepTensor, std::int64_t> step_tensor(const AdamWTensor& tensor) {
  const std::int64_t elements = tensor.value.elements();
  return {{tensor.gradient.data<float>(), tensor.value.data<float>(), tensor.m.data<float>(),
           tensor.v.data<float>(), bf16_copy(tensor), elements, tensor.decays, all_on_pack(tensor)},
          blocks_for(elements, kStepStretch)};
}

std::pair<CastTensor, std::int64_t> cast_tensor(const AdamWTensor& tensor) {
  const std::int64_t rows = tensor.value.rows(), cols = tensor.value.cols();
  const Output cast{{}, tensor.copies.fp8, tensor.copies.quantizer};
  // A thread of fill_tile_by_packs takes kThreadRows rows and repeats the last where there are fewer: an update must not
  // be repeated.
  const bool packs =
      rows % kThreadRows == 0 && cols % kPack == 0 && all_on_pack(tensor) && quaver::cuda::packs(cast);
  return {{tensor.gradient.data<float>(),
           tensor.value.data<float>(),
           tensor.m.data<float>(),
           tensor.v.data<float>(),
           bf16_copy(tensor),
           rows,
           cols,
           {sink_of<float>(cast)},
           tensor.decays,
           packs},
          tiles_of(rows, cols)};
}

/// Calls launch_some(tensors of one launch, its blocks) for all tensors.
template <typename List, typename Describe, typename Launch>
void for_launches(const std::vector<const AdamWTensor*>& tensors, const Describe& describe,
                  const Launch& launch_some) {
  List list{};
  std::int64_t blocks = 0;
  for (const AdamWTensor* tensor : tensors) {
    const auto [one, more] = describe(*tensor);
    list.first_block[list.count] = static_cast<int>(blocks);
    list.tensors[list.count++] = one;
    blocks += more;
    if (list.count < List::kMost && tensor != tensors.back()) continue;
    launch_some(list, blocks);
    list = {};
    blocks = 0;
  }
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
  launch("refuse_non_finite_casts", refuse_norm, {1, kThreads}, stream(), before.data<long long>(),
         before.rows(), after.data<long long>(), after.rows(), norm.data<float>());
}

void DeviceBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                          std::span<const AdamWTensor> tensors) {
  check_adamw(norm, tensors);
  for (const AdamWTensor& tensor : tensors) {
    require(tensor.m.dtype() == DType::f32 && tensor.value.dtype() == DType::f32,
            "adamw: backend \"{}\": a value of type {} with moments of type {}, expected f32. Hint: "
            "optimizer.masters = optimizer.moments = \"f32\"; the backends \"cpu\" and \"reference\" have "
            "the others",
            name(), name_of(tensor.value.dtype()), name_of(tensor.m.dtype()));
  }
  const AdamWFactors factors{step.lr,
                             step.beta1,
                             step.beta2,
                             step.epsilon,
                             step.weight_decay,
                             max_norm,
                             correction(step.beta1, step.step),
                             correction(step.beta2, step.step)};
  std::vector<const AdamWTensor*> plain, with_casts;
  for (const AdamWTensor& tensor : tensors) {
    if (tensor.value.elements() > 0) (tensor.copies.fp8.defined() ? with_casts : plain).push_back(&tensor);
  }
  for_launches<StepTensors>(plain, step_tensor, [&](const StepTensors& list, std::int64_t blocks) {
    launch("adamw", adamw_step, {blocks, kThreads}, stream(), factors, norm.data<float>(), list);
  });
  for_launches<CastTensors>(with_casts, cast_tensor, [&](const CastTensors& list, std::int64_t blocks) {
    launch("adamw and cast", adamw_cast, {blocks, kTileThreads}, stream(), factors, norm.data<float>(), list);
  });
}

}  // namespace quaver::cuda
