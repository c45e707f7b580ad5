/// What the kernels of AdamW share: one element's step, many tensors in one launch, and the cast of a tile of new values.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/cuda/produce.cuh"
#include "quaver/backend.h"

namespace quaver::cuda {

struct AdamWFactors {
  float lr, beta1, beta2, epsilon, weight_decay, max_norm, correction1, correction2;
};

/// is_usable_norm of quaver/backend.h.
__device__ inline bool usable(float norm, float max_norm) {
  const float clipped = max_norm > 0 && max_norm < norm ? max_norm : norm;
  return norm < HUGE_VALF && clipped <= 1e19f;
}

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

/// Casts what the function make_step(), as produce_tiles', gives for tile number `part` of a matrix: CastTensor, or one with the
/// same members `rows`, `cols`, `sinks` and `packs`. By all kTileThreads threads of a block.
template <typename Matrix, typename MakeStep>
__device__ void cast_part(const Matrix& matrix, int part, const MakeStep& make_step) {
  const BlockTiles tile{static_cast<int>(matrix.rows), static_cast<int>(matrix.cols), part, 1, part + 1};
  if (matrix.packs) {
    produce_block<true, 1, float>(make_step(), matrix.sinks, tile);
  } else {
    produce_block<false, 1, float>(make_step(), matrix.sinks, tile);
  }
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

inline bool all_on_pack(const AdamWTensor& tensor) {
  return on_pack(tensor.gradient.raw()) && on_pack(tensor.value.raw()) && on_pack(tensor.m.raw()) &&
         on_pack(tensor.v.raw()) && (!tensor.copies.bf16 || on_pack(tensor.copies.bf16.raw()));
}

/// Of the new values, to the FP8 copy.
inline Output cast_of(const AdamWTensor& tensor) {
  return {{}, tensor.copies.fp8, tensor.copies.quantizer};
}

inline bf16* bf16_copy(const AdamWTensor& tensor) {
  return tensor.copies.bf16 ? tensor.copies.bf16.data<bf16>() : nullptr;
}

}  // namespace quaver::cuda
