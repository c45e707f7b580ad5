/// Matrices as kernels see them, and the dispatch from a tensor's type to a kernel's.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "ops/cuda/bf16_pairs.cuh"
#include "ops/cuda/launch.h"
#include "quaver/tensor.h"

namespace quaver::cuda {

template <typename T, int N>
constexpr int kPackAlignment = N * sizeof(T) > 16 ? 16 : N * sizeof(T);

/// N consecutive elements, moved as one 8- or 16-byte access where they fill one.
template <typename T, int N>
struct alignas(kPackAlignment<T, N>) Pack {
  T at[N];

  __device__ T element(int i) const { return at[i]; }
  __device__ void set(int i, T element) { at[i] = element; }
};

/// Pairs of BF16 numbers are words, as an instruction makes them: the compiler moves elements of 2 bytes one by one.
template <int N>
requires(N % 4 == 0) struct alignas(kPackAlignment<bf16, N>) Pack<bf16, N> {
  std::uint32_t words[N / 2];

  __device__ bf16 element(int i) const { return {static_cast<std::uint16_t>(words[i / 2] >> i % 2 * 16)}; }
  __device__ void set(int i, bf16 element) {
    const std::uint32_t kept = words[i / 2] & 0xFFFF0000u >> i % 2 * 16;
    words[i / 2] = kept | static_cast<std::uint32_t>(element.bits) << i % 2 * 16;
  }
};
template <typename T, int N>
constexpr bool kPairs = std::is_same_v<T, bf16>&& N % 4 == 0;

template <typename T, int N>
__device__ void widen(const Pack<T, N>& pack, float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (kPairs<T, N>) {
      values[i] = i % 2 == 0 ? low_half(pack.words[i / 2]) : high_half(pack.words[i / 2]);
    } else {
      values[i] = as_float(pack.at[i]);
    }
  }
}

/// Of the even numbers and of the odd ones, as larger_magnitudes has them.
template <int N>
__device__ unsigned largest_magnitudes(const Pack<bf16, N>& pack) {
  unsigned largest = larger_magnitudes(pack.words[0], pack.words[1]);
#pragma unroll
  for (int w = 2; w < N / 2; ++w) largest = larger_magnitudes(largest, pack.words[w]);
  return largest;
}

/// As pack_pair rounds them: a NaN's bits are a device's.
template <int N>
__device__ Pack<bf16, N> rounded_pairs(const float (&values)[N]) {
  Pack<bf16, N> pack;
#pragma unroll
  for (int i = 0; i < N; i += 2) pack.words[i / 2] = pack_pair(values[i], values[i + 1]);
  return pack;
}
/// As round_as rounds them, one by one.
template <typename T, int N>
__device__ Pack<T, N> rounded_singly(const float (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.set(i, round_as<T>(values[i]));
  return pack;
}
/// The same, by pairs while there is no NaN.
template <typename T, int N>
__device__ Pack<T, N> rounded(const float (&values)[N]) {
  if constexpr (kPairs<T, N>) {
    const Pack<T, N> pack = rounded_pairs(values);
    if (both_at_most(largest_magnitudes(pack), kBothInfinite)) return pack;
  }
  return rounded_singly<T>(values);
}

/// Stores a pack in global memory. The compiler takes four words apart where the address is one of a loop.
template <typename T, int N>
__device__ void store_pack(T* to, const Pack<T, N>& pack) {
#ifdef __CUDACC__
  if constexpr (kPairs<T, N> && N == 8) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(pack.words[0]), "r"(pack.words[1]),
                 "r"(pack.words[2]), "r"(pack.words[3])
                 : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

/// Elements that one thread of a vectorised kernel handles at once.
constexpr int kPack = 8;

/// a * b in one instruction: left to itself, the compiler multiplies in 64 bits.
__device__ inline std::int64_t wide_product(int a, int b) {
#ifdef __CUDACC__
  std::int64_t result;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(result) : "r"(a), "r"(b));
  return result;
#else
  return std::int64_t{a} * b;
#endif
}

/// Element (m, n) is data[m * stride + n].
template <typename T>
struct Matrix {
  T* data = nullptr;
  std::int64_t stride = 0;

  __device__ T* address(std::int64_t m, std::int64_t n) const { return data + m * stride + n; }
  __device__ float operator()(std::int64_t m, std::int64_t n) const { return as_float(*address(m, n)); }

  /// Lets the second-level cache have the line of an element.
  __device__ void fetch([[maybe_unused]] std::int64_t m, [[maybe_unused]] std::int64_t n) const {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address(m, n)));
#endif
  }
  template <int N>
  __device__ Pack<std::remove_const_t<T>, N> pack(std::int64_t m, std::int64_t n) const {
    return *reinterpret_cast<const Pack<std::remove_const_t<T>, N>*>(address(m, n));
  }
  /// The same with fewer instructions, of a matrix that packs(): its stride fits 32 bits. N = 1: of any.
  template <int N = kPack>
  __device__ T* near_address(int m, int n) const {
    if constexpr (N == 1) return address(m, n);
    return data + n + wide_product(m, static_cast<int>(stride));
  }
  template <int N>
  __device__ Pack<std::remove_const_t<T>, N> near_pack(int m, int n) const {
    return *reinterpret_cast<const Pack<std::remove_const_t<T>, N>*>(near_address<N>(m, n));
  }
  template <int N>
  __device__ void near_store(int m, int n, const float (&values)[N]) const {
    store_pack(near_address<N>(m, n), rounded<T>(values));
  }
  template <int N>
  __device__ void load(std::int64_t m, std::int64_t n, float (&values)[N]) const {
    widen(pack<N>(m, n), values);
  }
  template <int N>
  __device__ void store(std::int64_t m, std::int64_t n, const float (&values)[N]) const {
    store(m, n, rounded<T>(values));
  }
  template <int N>
  __device__ void store(std::int64_t m, std::int64_t n, const Pack<T, N>& pack) const {
    store_pack(address(m, n), pack);
  }
};

/// The view of a tensor of rank 2, or of one row; null for an absent one.
template <typename T>
Matrix<T> matrix_of(const Tensor& tensor) {
  if (!tensor) return {};
  return {tensor.data<T>(), tensor.shape().size() == 2 ? tensor.row_stride() : tensor.elements()};
}

/// Whether packs of any type may start at an address.
inline bool on_pack(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

/// Whether threads may move packs of a matrix: its columns, stride and address are multiples of one, and the stride fits 32 bits.
inline bool packs(const Tensor& tensor) {
  if (!tensor) return true;
  const auto bytes = kPack * size_of(tensor.dtype());
  const auto alignment = bytes < 16 ? bytes : 16;
  return tensor.cols() % kPack == 0 && (tensor.row_stride() % kPack == 0 || tensor.rows() <= 1) &&
         tensor.row_stride() <= std::numeric_limits<int>::max() &&
         reinterpret_cast<std::uintptr_t>(tensor.raw()) % alignment == 0;
}
inline bool all_pack(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (!packs(tensor)) return false;
  }
  return true;
}

/// Calls f with a value of the C++ type of a real dtype.
template <typename F>
void with_real(DType dtype, const F& f) {
  dtype == DType::f32 ? f(float{}) : f(bf16{});
}

/// Divisions of 32 bits take a fraction of the time.
__device__ inline std::int64_t quotient(std::int64_t index, std::int64_t divisor) {
  if ((index | divisor) <= 0xFFFFFFFFll) return static_cast<unsigned>(index) / static_cast<unsigned>(divisor);
  return index / divisor;
}

constexpr std::int64_t blocks_for(std::int64_t count, std::int64_t per_block) {
  return (count + per_block - 1) / per_block;
}

}  // namespace quaver::cuda
