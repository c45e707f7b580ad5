/// Rows of logits, for the cross entropy: a warp sums parts of a row, parts are joined, and the joined row gives the loss and what the
/// gradient of each logit is computed from. Both forms of the operation (cross_entropy.cu, cross_entropy_once.cuh) sum in this order,
/// so that they give the same bits.
///
/// Exponents are computed by one fused operation, z log2(e) + offset. Logits of 2^126 and more count as infinite: their row is NaN.
#pragma once

#include <cstdint>

#include "ops/cuda/exponential.cuh"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {

/// Of a part, a lane has kPartPacks packs, which lie kPackStride logits apart.
constexpr int kPartPacks = 8, kPackStride = 32 * kPack, kPartCols = kPartPacks * kPackStride;
template <typename T>
using PartPacks = Pack<T, kPack>[kPartPacks];

/// The sum of e^(z - largest) of some logits. Of none: -infinity and 0.
struct alignas(8) Part {
  float largest = -kInfinity, sum = 0;

  /// The sum of e^(z - to): `to` is at least the largest.
  __device__ float sum_below(float to) const {
    return largest == to ? sum : sum * power_of_two((largest - to) * kLog2E);
  }
};
__device__ inline Part join(const Part& a, const Part& b) {
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum_below(largest) + b.sum_below(largest)};
}
/// Of all lanes; every lane gets the result.
__device__ inline Part join_lanes(const Part& part) {
  const float largest = warp_reduce(part.largest, Largest{});
  return {largest, warp_reduce(part.sum_below(largest), Add{})};
}

/// Takes logits out of a part: those for which which(place) holds, counted from the lane's first.
template <typename T, typename Which>
__device__ void leave_out(PartPacks<T>& z, const Which& which) {
#pragma unroll
  for (int i = 0; i < kPartPacks; ++i) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      if (which(i * kPackStride + e)) z[i].set(e, round_as<T>(-kInfinity));
    }
  }
}

#ifdef __CUDACC__
/// Of each half the larger; of a NaN and a number the number.
__device__ inline unsigned larger_halves(unsigned a, unsigned b) {
  unsigned larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
#else
inline unsigned larger_halves(unsigned a, unsigned b) {
  return pack_pair(fmaxf(low_half(a), low_half(b)), fmaxf(high_half(a), high_half(b)));
}
#endif

/// The largest logit of all lanes; NaN is none.
__device__ inline float largest_of_part(const PartPacks<bf16>& z) {
  unsigned largest = z[0].words[0];
#pragma unroll
  for (int i = 0; i < kPartPacks; ++i) {
#pragma unroll
    for (int w = 0; w < kPack / 2; ++w) largest = larger_halves(largest, z[i].words[w]);
  }
  largest = warp_reduce(largest, [](unsigned a, unsigned b) { return larger_halves(a, b); });
  return fmaxf(low_half(largest), high_half(largest));
}
__device__ inline float largest_of_part(const PartPacks<float>& z) {
  float largest = z[0].at[0];
#pragma unroll
  for (int i = 0; i < kPartPacks; ++i) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) largest = fmaxf(largest, z[i].at[e]);
  }
  return warp_reduce(largest, Largest{});
}

/// By a warp; every lane gets the result.
template <typename T>
__device__ Part sum_part(const PartPacks<T>& z) {
  const float largest = largest_of_part(z);
  const bool finite = fabsf(largest * kLog2E) < kInfinity;
  const float base = finite ? largest * kLog2E : 0.0f;  // then all terms are 0, or one is infinite
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kPartPacks; ++i) {
    float x[kPack];
    widen(z[i], x);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e % 4] += power_of_two(fmaf(x[e], kLog2E, -base));
  }
  const float sum = warp_reduce((sums[0] + sums[1]) + (sums[2] + sums[3]), Add{});
  if (!finite) return {largest, sum};
  // By what `base` was rounded: 6e-5 with logits of 1000.
  return {largest, sum * power_of_two(fmaf(-largest, kLog2E, base))};
}

/// What the gradient of a loss is multiplied by.
struct GradientScale {
  float factor, log2_magnitude;
};
/// What the gradients of a row's logits are computed from.
struct alignas(8) RowGradient {
  float offset;     ///< of exponents; -infinity without a target
  float at_target;  ///< the gradient of the target's logit
};
/// A row of logits joined: all NaN if a logit is NaN or infinite or all are -infinity.
struct JoinedRow {
  float loss;
  RowGradient gradient;
};
/// `others`: all logits but the target's, which is -infinity if there is none.
__device__ inline JoinedRow join_target(const Part& others, float at_target, bool has_target,
                                        const GradientScale& scale) {
  constexpr float kHuge = 0x1p126f;
  if (!has_target) return {0, {-kInfinity, 0}};
  const Part all = join(others, {at_target, 1});
  const float log2_sum = log2f(all.sum), nan = __uint_as_float(0x7FC00000u);
  if (!(fabsf(all.largest) < kHuge && fabsf(log2_sum) < kInfinity)) return {nan, {nan, nan}};
  const float loss = (all.largest - at_target) + kLn2 * log2_sum;
  // Not from the offset: a probability of 1 has a gradient of 0.
  return {loss, {fmaf(-all.largest, kLog2E, scale.log2_magnitude - log2_sum), scale.factor * expm1f(-loss)}};
}

/// The targets of all rows, and where what is joined of them goes.
struct TargetRows {
  const std::int32_t* targets;
  float* losses;
  RowGradient* gradients;
  int* faults;
};

/// The magnitude of the gradient's scale times the probability of a logit.
__device__ inline float scaled_probability(float logit, float offset) {
  return power_of_two(fmaf(logit, kLog2E, offset));
}

}  // namespace quaver::cuda
