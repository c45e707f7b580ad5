/// AdamW on state in fewer bits (docs/numerics.md, "Optimizer state in fewer bits"): a warp steps kMomentBlock numbers, which share
/// the scales of moments in FP8; a lane has four of them, which share a call of the random number generator.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/adamw.cuh"
#include "ops/cuda/philox.cuh"
#include "ops/step_noise.h"

namespace quaver::cuda {

constexpr int kStepPack = 4;  ///< elements that a thread handles at once
static_assert(kMomentBlock == 32 * kStepPack);

/// Of the two neighbours of |x| the upper one if the remainder exceeds the word's upper 24 bits, as a share of 1.
__device__ inline bf16 bf16_of(float x, unsigned word) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return round_as<bf16>(x);
  return {static_cast<std::uint16_t>((bits >> 16) + ((bits & 0xFFFFu) << 8 > word >> 8))};
}
__device__ inline unsigned e4m3_of(float x, unsigned word) {
  const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu;
  if (x != x) return 0x7F;
  unsigned code;
  if (magnitude >= 0x3C800000u) {  // 2^-6, the smallest normal number: code 8
    code = (magnitude >> 20) - 0x3C0u + ((magnitude & 0xFFFFFu) << 4 > word >> 8);
  } else {
    const float steps = __uint_as_float(magnitude) * 0x1p9f, lower = floorf(steps);
    code = static_cast<unsigned>(lower) + (steps - lower > static_cast<float>(word >> 8) * 0x1p-24f);
  }
  return (bits >> 24 & 0x80u) | min(code, 0x7Eu);
}

/// A tensor of values of type V; moments of type M, std::uint8_t for E4M3.
template <typename V, typename M>
struct StoredTensor {
  const float* gradient;
  V* value;
  M *m, *v;
  float *m_scales, *v_scales;  ///< null unless E4M3
  bf16* copy;                  ///< null: none
  std::int64_t elements;
  std::uint64_t value_noise, m_noise, v_noise;  ///< streams of random numbers
  std::int64_t decays, packs;                   // numbers: no padding
};

/// A lane's elements.
template <typename V, typename M>
struct StoredPack {
  Pack<float, kStepPack> gradient;
  Pack<V, kStepPack> value;
  Pack<M, kStepPack> m, v;
};

template <typename T>
__device__ Pack<T, kStepPack> pack_at(const T* data, std::int64_t at) {
  return *reinterpret_cast<const Pack<T, kStepPack>*>(data + at);
}

/// Elements [at, at + kStepPack) of a tensor whose packs may be read and written at once.
template <typename V, typename M>
__device__ StoredPack<V, M> load_whole(const StoredTensor<V, M>& tensor, std::int64_t at) {
  return {pack_at(tensor.gradient, at), pack_at(tensor.value, at), pack_at(tensor.m, at),
          pack_at(tensor.v, at)};
}
/// All but the gradient; and the copy.
template <typename V, typename M>
__device__ void store_whole(const StoredTensor<V, M>& tensor, std::int64_t at, const StoredPack<V, M>& pack) {
  Matrix<V>{tensor.value}.store(0, at, pack.value);
  Matrix<M>{tensor.m}.store(0, at, pack.m);
  Matrix<M>{tensor.v}.store(0, at, pack.v);
  if (!tensor.copy) return;
  float values[kStepPack];
  widen(pack.value, values);
  Matrix<bf16>{tensor.copy}.store(0, at, values);
}

/// The same of any tensor; zeros beyond its end, which are not stored.
template <typename V, typename M>
__device__ StoredPack<V, M> load_stored(const StoredTensor<V, M>& tensor, std::int64_t at) {
  if (tensor.packs && at + kStepPack <= tensor.elements) return load_whole(tensor, at);
  StoredPack<V, M> pack{};
#pragma unroll
  for (int i = 0; i < kStepPack; ++i) {
    if (at + i >= tensor.elements) continue;
    pack.gradient.set(i, tensor.gradient[at + i]);
    pack.value.set(i, tensor.value[at + i]);
    pack.m.set(i, tensor.m[at + i]);
    pack.v.set(i, tensor.v[at + i]);
  }
  return pack;
}

template <typename V, typename M>
__device__ void store_stored(const StoredTensor<V, M>& tensor, std::int64_t at,
                             const StoredPack<V, M>& pack) {
  if (tensor.packs && at + kStepPack <= tensor.elements) return store_whole(tensor, at, pack);
#pragma unroll
  for (int i = 0; i < kStepPack; ++i) {
    if (at + i >= tensor.elements) continue;
    tensor.value[at + i] = pack.value.element(i);
    tensor.m[at + i] = pack.m.element(i);
    tensor.v[at + i] = pack.v.element(i);
    if (tensor.copy) tensor.copy[at + i] = round_as<bf16>(as_float(pack.value.element(i)));
  }
}

/// One step of a tensor. By all lanes of a warp, `at` being a multiple of kMomentBlock plus kStepPack times the lane.
template <typename V, typename M>
struct StoredStep {
  AdamWFactors f;
  float decay, clip;
  std::uint64_t seed;
  const StoredTensor<V, M>& tensor;

  __device__ void operator()(std::int64_t at, StoredPack<V, M>& pack) const {
    float gradient[kStepPack], value[kStepPack], m[kStepPack], v[kStepPack];
    widen(pack.gradient, gradient);
    widen(pack.value, value);
    widen_moments(pack.m, tensor.m_scales, at, m);
    widen_moments(pack.v, tensor.v_scales, at, v);
#pragma unroll
    for (int i = 0; i < kStepPack; ++i) {
      if constexpr (kCodes) v[i] *= v[i];
      step_element(f, decay, clip, gradient[i], value[i], m[i], v[i]);
      if constexpr (kCodes) v[i] = sqrtf(v[i]);
    }
    narrow(value, tensor.value_noise, at, pack.value);
    if constexpr (kCodes) {
      encode(m, 0, tensor.m_noise, at, tensor.m_scales, pack.m);
      encode(v, 1, tensor.v_noise, at, tensor.v_scales, pack.v);
    } else {
      narrow(m, tensor.m_noise, at, pack.m);
      narrow(v, tensor.v_noise, at, pack.v);
    }
  }

 private:
  static constexpr bool kCodes = std::is_same_v<M, std::uint8_t>;

  __device__ RandomWords words(std::uint64_t noise, std::int64_t at) const {
    return random_words(static_cast<std::uint64_t>(at / kStepPack), noise, seed);
  }
  __device__ void widen_moments(const Pack<M, kStepPack>& pack, const float* scales, std::int64_t at,
                                float (&values)[kStepPack]) const {
    if constexpr (kCodes) {
      const float scale = scales[at / kMomentBlock];
#pragma unroll
      for (int i = 0; i < kStepPack; ++i) values[i] = fp8_value(Fp8::e4m3, pack.at[i]) * scale;
    } else {
      widen(pack, values);
    }
  }
  template <typename T>
  __device__ void narrow(const float (&values)[kStepPack], std::uint64_t noise, std::int64_t at,
                         Pack<T, kStepPack>& pack) const {
    if constexpr (std::is_same_v<T, float>) {
      pack = rounded<float>(values);
    } else {
      const RandomWords random = words(noise, at);
#pragma unroll
      for (int i = 0; i < kStepPack; ++i) pack.set(i, bf16_of(values[i], random.at[i]));
    }
  }
  /// No positive number gets a code below `least`. Every lane has read its block's scale before one writes it.
  __device__ void encode(const float (&values)[kStepPack], unsigned least, std::uint64_t noise,
                         std::int64_t at, float* scales, Pack<M, kStepPack>& pack) const {
    float amax = kLeastMomentAmax;
#pragma unroll
    for (int i = 0; i < kStepPack; ++i) amax = fmaxf(amax, fabsf(values[i]));  // ignores NaN
    amax = warp_reduce(amax, Largest{});
    const float multiplier = largest_fp8(Fp8::e4m3) / amax;
    const RandomWords random = words(noise, at);
#pragma unroll
    for (int i = 0; i < kStepPack; ++i) {
      const unsigned code = e4m3_of(values[i] * multiplier, random.at[i]);
      pack.set(i, static_cast<std::uint8_t>(values[i] > 0 ? max(code, least) : code));
    }
    if (threadIdx.x % 32 == 0) scales[at / kMomentBlock] = amax / largest_fp8(Fp8::e4m3);
  }
};

}  // namespace quaver::cuda
