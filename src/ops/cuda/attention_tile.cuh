/// Tiles of BF16 attention: from global to shared memory, from there through the tensor cores.
///
/// A tile in shared memory is a number of rows (positions) of kWidth elements (one head, padded with zeros).
#pragma once

#include <cstdint>

#include "ops/cuda/attention_warp.cuh"

namespace quaver::cuda {

/// Elements from one row of a tile to the next: 16 bytes more than the row, so that the 8 rows that a matrix
/// load reads at once lie in 8 different groups of 4 banks.
template <int kWidth>
constexpr int kPadded = kWidth + 8;

/// A warp's accumulators: kRows x kColumns pieces of 16 x 8. In each, a lane holds the elements of row lane /
/// 4 (0, 1) and row lane / 4 + 8 (2, 3) in columns 2 * (lane % 4) (0, 2) and 2 * (lane % 4) + 1 (1, 3).
template <int kRows, int kColumns>
struct Accumulators {
  float at[kRows][kColumns][4] = {};
};

__device__ inline int row_in_piece(int lane, int element) {
  return lane / 4 + element / 2 * 8;
}
__device__ inline int column_in_piece(int lane, int element) {
  return 2 * (lane % 4) + element % 2;
}

/// f(i, j, e, element) for the elements of a lane.
template <int kRows, int kColumns, typename F>
__device__ void for_elements(Accumulators<kRows, kColumns>& accumulators, const F& f) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) f(i, j, e, accumulators.at[i][j][e]);
    }
  }
}

/// f(i, half) for the rows 16 * i + row_in_piece(lane, 2 * half) of a lane.
template <int kRows, typename F>
__device__ void for_rows(const F& f) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) f(i, half);
  }
}

/// sum += a b^T, the contraction over the width of both tiles. `a` is the warp's first row.
template <int kWidth, int kRows, int kColumns>
__device__ void multiply_transposed(Accumulators<kRows, kColumns>& sum, const bf16* a, const bf16* b,
                                    int lane) {
  const bf16* a_lane = a + lane % 16 * kPadded<kWidth> + lane / 16 * 8;
  const bf16* b_lane = b + (lane / 16 * 8 + lane % 8) * kPadded<kWidth> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    std::uint32_t left[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) load_matrices(left[i], a_lane + 16 * i * kPadded<kWidth> + k);
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      std::uint32_t right[4];
      load_matrices(right, b_lane + 8 * j * kPadded<kWidth> + k);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        multiply_add(sum.at[i][j], left[i], right);
        multiply_add(sum.at[i][j + 1], left[i], right + 2);
      }
    }
  }
}

/// sum += p b, p rounded to BF16: its columns are the rows of the tile b.
template <int kWidth, int kRows, int kColumns>
__device__ void multiply(Accumulators<kRows, kWidth / 8>& sum, const Accumulators<kRows, kColumns>& p,
                         const bf16* b, int lane) {
  const bf16* b_lane = b + lane % 16 * kPadded<kWidth> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kColumns; k += 2) {
    std::uint32_t left[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* pair = p.at[i][k + part / 2] + part % 2 * 2;
        left[i][part] = pack_pair(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kWidth / 8; j += 2) {
      std::uint32_t right[4];
      load_matrices_transposed(right, b_lane + 8 * k * kPadded<kWidth> + 8 * j);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        multiply_add(sum.at[i][j], left[i], right);
        multiply_add(sum.at[i][j + 1], left[i], right + 2);
      }
    }
  }
}

/// Rows of one head in global memory.
template <typename T>
struct HeadRows {
  T* data;
  std::int64_t stride;
  __device__ HeadRows from(std::int64_t row) const { return {data + row * stride, stride}; }
};

/// Starts copying `rows` rows of `width` elements into a tile, and fills its rest with zeros. Followed by
/// wait_for_copies and a barrier. `aligned`: addresses are multiples of 16 bytes, `width` and the stride of 8
/// elements.
template <int kRows, int kWidth, int kThreads>
__device__ void load_tile(bf16* tile, HeadRows<const bf16> from, int rows, int width, bool aligned,
                          int thread) {
  constexpr int kChunk = 8, kChunks = kRows * kWidth / kChunk;
  const auto for_chunks = [&](const auto& copy) {
#pragma unroll
    for (int i = thread; i < kChunks; i += kThreads) {
      const int row = i / (kWidth / kChunk), column = i % (kWidth / kChunk) * kChunk;
      copy(tile + row * kPadded<kWidth> + column, from.data + row * from.stride + column, row < rows,
           width - column);
    }
  };
  if (aligned) {
    for_chunks([&](bf16* to, const bf16* source, bool inside, int count) {
      inside = inside && count > 0;
      copy_16_bytes(to, inside ? source : from.data, inside);
    });
  } else {
    for_chunks([](bf16* to, const bf16* source, bool inside, int count) {
      for (int c = 0; c < kChunk; ++c) to[c] = inside && c < count ? source[c] : bf16{};
    });
  }
}

/// Stores the warp's accumulators, times a factor per row, to the rows [0, rows) of `to`.
template <int kRows, int kWidth, typename Factor>
__device__ void store_rows(const Accumulators<kRows, kWidth / 8>& sum, HeadRows<bf16> to, int rows, int width,
                           bool aligned, int lane, const Factor& factor) {
  for_rows<kRows>([&](int i, int half) {
    const int row = 16 * i + row_in_piece(lane, 2 * half);
    if (row >= rows) return;
    bf16* out = to.data + row * to.stride;
    const float times = factor(i, half);
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const int column = 8 * j + column_in_piece(lane, 0);
      const float* pair = sum.at[i][j] + 2 * half;
      store_pair(out + column, pair[0] * times, pair[1] * times, width - column, aligned);
    }
  });
}

}  // namespace quaver::cuda
