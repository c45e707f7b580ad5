#include "ops/cuda/adamw.cuh"

#include <cmath>
#include <utility>
#include <vector>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/stored_step.h"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStepPack = 4;  // elements that a thread handles at once: 16 bytes
constexpr std::int64_t kStepStretch = 4 * kStepPack * kThreads;  // elements of one tensor per block

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

/// A function of tiles: updates elements and hands on their new values.
struct StepOfMatrix {
  AdamWFactors f;
  float decay, clip;
  Matrix<const float> gradient;
  Matrix<float> value, m, v;
  Matrix<bf16> copy;

  template <int N>
  struct Operands {
    Pack<float, N> gradient, value, m, v;
  };
  template <int N>
  __device__ Operands<N> read(int row, int column) const {
    return {gradient.near_pack<N>(row, column), value.near_pack<N>(row, column), m.near_pack<N>(row, column),
            v.near_pack<N>(row, column)};
  }
  template <int N>
  __device__ void operator()(int row, int column, const Operands<N>& read, float (&results)[1][N]) const {
    float g[N], first[N], second[N];
    widen(read.gradient, g);
    widen(read.value, results[0]);
    widen(read.m, first);
    widen(read.v, second);
#pragma unroll
    for (int i = 0; i < N; ++i) step_element(f, decay, clip, g[i], results[0][i], first[i], second[i]);
    value.near_store(row, column, results[0]);
    m.near_store(row, column, first);
    v.near_store(row, column, second);
    if (copy.data) copy.near_store(row, column, results[0]);
  }
};

/// One block per tile of a matrix: the update, and the cast of what it gives.
__global__ void __launch_bounds__(kTileThreads, 2)
    adamw_cast(AdamWFactors f, const float* norm, CastTensors all) {
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const CastTensor& tensor = all.tensors[index];
  cast_part(tensor, block - all.first_block[index], [&] {
    const std::int64_t cols = tensor.cols;
    return StepOfMatrix{f,
                        tensor.decays ? f.weight_decay : 0.0f,
                        clip_of(f, length),
                        {tensor.gradient, cols},
                        {tensor.value, cols},
                        {tensor.m, cols},
                        {tensor.v, cols},
                        {tensor.copy, cols}};
  });
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
  const Output cast = cast_of(tensor);
  const bool packs = cols % kPack == 0 && all_on_pack(tensor) && quaver::cuda::packs(cast);
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

float correction(float beta, std::int64_t step) {
  return static_cast<float>(1 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
}

}  // namespace

void DeviceBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                          std::span<const AdamWTensor> tensors) {
  check_adamw(norm, tensors);
  const AdamWFactors factors{step.lr,
                             step.beta1,
                             step.beta2,
                             step.epsilon,
                             step.weight_decay,
                             max_norm,
                             correction(step.beta1, step.step),
                             correction(step.beta2, step.step)};
  std::vector<const AdamWTensor*> plain, with_casts, stored;
  for (const AdamWTensor& tensor : tensors) {
    if (tensor.value.elements() == 0) continue;
    const bool is_f32 = tensor.value.dtype() == DType::f32 && tensor.m.dtype() == DType::f32;
    (!is_f32 ? stored : tensor.copies.fp8.defined() ? with_casts : plain).push_back(&tensor);
  }
  for_launches<StepTensors>(plain, step_tensor, [&](const StepTensors& list, std::int64_t blocks) {
    launch("adamw", adamw_step, {blocks, kThreads}, stream(), factors, norm.data<float>(), list);
  });
  for_launches<CastTensors>(with_casts, cast_tensor, [&](const CastTensors& list, std::int64_t blocks) {
    launch("adamw and cast", adamw_cast, {blocks, kTileThreads}, stream(), factors, norm.data<float>(), list);
  });
  step_stored(step, factors, norm.data<float>(), stored, stream());
}

}  // namespace quaver::cuda
