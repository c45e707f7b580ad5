/// What attention asks of one warp: tensor-core products, matrix loads, BF16 pairs. Each is one instruction on the device;
/// the emulation computes the same in plain code.
#pragma once

#include <cstdint>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/exponential.cuh"
#include "ops/cuda/launch.h"

namespace quaver::cuda {

#ifdef __CUDACC__

/// sum += a b: a is 16 x 16 (rows), b 16 x 8 (columns), BF16, summed in FP32: mma.m16n8k16.
__device__ inline void multiply_add(float (&sum)[4], const std::uint32_t* a, const std::uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8 x 8 matrices from shared memory: lane 8 m + r names row r of matrix m; part m of a lane then holds
/// columns 2 * (lane % 4) and the next of row lane / 4.
__device__ inline void load_matrices(std::uint32_t (&part)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of the transposed matrices.
__device__ inline void load_matrices_transposed(std::uint32_t (&part)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}

#else

struct ProductOperands {
  std::uint32_t a[4], b[2];
};

__device__ inline float half_of(std::uint32_t pair, int half) {
  return as_float(bf16{static_cast<std::uint16_t>(pair >> 16 * half)});
}

__device__ inline void multiply_add(float (&sum)[4], const std::uint32_t* a, const std::uint32_t* b) {
  const int row = emulation::lane() / 4, first_column = 2 * (emulation::lane() % 4);
  emulation::with_warp(ProductOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, [&](const auto* lanes) {
    for (int e = 0; e < 4; ++e) {
      for (int k = 0; k < 16; ++k) {
        const int pair = k % 8 / 2, column = first_column + e % 2;
        sum[e] += half_of(lanes[4 * row + pair]->a[e / 2 + k / 8 * 2], k % 2) *
                  half_of(lanes[4 * column + pair]->b[k / 8], k % 2);
      }
    }
    return 0;
  });
}

__device__ inline std::uint32_t pair_of(bf16 low, bf16 high) {
  return low.bits | static_cast<std::uint32_t>(high.bits) << 16;
}

__device__ inline void load_matrices(std::uint32_t (&part)[4], const bf16* row) {
  const int row_of_lane = emulation::lane() / 4, column = 2 * (emulation::lane() % 4);
  emulation::with_warp(row, [&](const bf16* const* const* rows) {
    for (int m = 0; m < 4; ++m) {
      const bf16* from = *rows[8 * m + row_of_lane];
      part[m] = pair_of(from[column], from[column + 1]);
    }
    return 0;
  });
}

__device__ inline void load_matrices_transposed(std::uint32_t (&part)[4], const bf16* row) {
  const int from = 2 * (emulation::lane() % 4), column = emulation::lane() / 4;
  emulation::with_warp(row, [&](const bf16* const* const* rows) {
    for (int m = 0; m < 4; ++m) {
      part[m] = pair_of((*rows[8 * m + from])[column], (*rows[8 * m + from + 1])[column]);
    }
    return 0;
  });
}

#endif

/// Stores the first `count` of two floats, rounded as round_as does. `aligned`: `to` lies on 4 bytes, and
/// count is not 1.
__device__ inline void store_pair(bf16* to, float low, float high, int count, bool aligned) {
  constexpr std::uint32_t kNan = 0x7FC0;
  std::uint32_t pair = pack_pair(low, high);
  if (low != low) pair = (pair & 0xFFFF0000u) | kNan;
  if (high != high) pair = (pair & 0xFFFFu) | kNan << 16;
  if (aligned) {
    if (count > 0) *reinterpret_cast<std::uint32_t*>(to) = pair;
    return;
  }
  if (count > 0) to[0].bits = static_cast<std::uint16_t>(pair);
  if (count > 1) to[1].bits = static_cast<std::uint16_t>(pair >> 16);
}

}  // namespace quaver::cuda
