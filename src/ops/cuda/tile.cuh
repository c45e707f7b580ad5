/// Tiles of a matrix that blocks of threads take, and their transposed bytes.
#pragma once

#include <cstdint>

#include "ops/cuda/fp8.cuh"
#include "ops/cuda/matrix.cuh"

namespace quaver::cuda {

constexpr int kTileRows = 128, kTileCols = 64;  ///< 128 bytes of every row and of every transposed row
constexpr int kTileThreads = 256;
constexpr int kTilePitch =
    kTileRows + 4;              ///< of a column's bytes in shared memory: columns start in other banks
constexpr int kThreadRows = 4;  ///< rows of packs that a thread takes: a word of each transposed row

constexpr std::int64_t tiles_of(std::int64_t rows, std::int64_t cols) {
  return blocks_for(rows, kTileRows) * blocks_for(cols, kTileCols);
}

/// A tile of a block.
struct OutputTile {
  int row, column, rows, cols;  ///< where it begins, and the matrix's size
};

/// What a block takes of a matrix of `rows` by `cols`: the tile of number `first` and every `step`th after it.
struct BlockTiles {
  int rows, cols, first, step, end;

  __device__ OutputTile at(int index) const {
    const int across = (cols + kTileCols - 1) / kTileCols, down = index / across;
    return {down * kTileRows, (index - down * across) * kTileCols, rows, cols};
  }
};

/// The bytes of a tile in shared memory, column by column; words on words.
struct TransposedTile {
  /// The lanes of a warp leave words of four rows of columns 8, 16, ... apart: the second 32 begin in yet other banks.
  static constexpr int kSecondHalf = 16;
  __align__(16) std::uint8_t bytes[kTileCols * kTilePitch + kSecondHalf];

  /// Where a column begins in `bytes`.
  __device__ static int begin_of(int column) { return column * kTilePitch + column / 32 * kSecondHalf; }

  /// Writes those that lie in the matrix of `rows` by `cols`, `run` bytes at a time where whole columns do. By all threads.
  __device__ void write(const Matrix<std::uint8_t>& to, int run, const OutputTile& tile) const {
    const int width = min(tile.cols - tile.column, kTileCols);
    const int height = min(tile.rows - tile.row, kTileRows);
    std::uint8_t* const begin = to.address(tile.column, tile.row);
    if (height < kTileRows) run = 1;
    if (run == 16) {
      write_runs<Pack<unsigned, 4>>(begin, to.stride, width);
    } else if (run == 4) {
      write_runs<Pack<unsigned, 1>>(begin, to.stride, width);
    } else {
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < width * kTileRows; i += kTileThreads) {
        const int n = i / kTileRows, m = i % kTileRows;
        if (m < height) begin[n * to.stride + m] = bytes[begin_of(n) + m];
      }
    }
  }

 private:
  /// Lanes write a column's runs side by side. Columns begin in other banks, so that 16 bytes are read as words.
  template <typename Run>
  __device__ void write_runs(std::uint8_t* to, std::int64_t stride, int width) const {
    constexpr int kRuns = kTileRows / sizeof(Run), kAtOnce = kTileThreads / kRuns;
    const int first = static_cast<int>(threadIdx.x) / kRuns;
    const int m = static_cast<int>(threadIdx.x) % kRuns * static_cast<int>(sizeof(Run));
    to += first * stride + m;
#pragma unroll 2
    for (int n = first; n < width; n += kAtOnce, to += kAtOnce * stride) {
      const auto* const words = reinterpret_cast<const unsigned*>(bytes + begin_of(n) + m);
      Run run;
#pragma unroll
      for (int w = 0; w < static_cast<int>(sizeof(Run) / 4); ++w) run.at[w] = words[w];
      *reinterpret_cast<Run*>(to) = run;
    }
  }
};

/// Word r holds the bytes of row r, the first column lowest; afterwards word c holds those of column c.
__device__ inline void transpose_words(unsigned (&words)[4]) {
  const unsigned low01 = select_bytes(words[0], words[1], 0x5140),
                 low23 = select_bytes(words[2], words[3], 0x5140);
  const unsigned high01 = select_bytes(words[0], words[1], 0x7362),
                 high23 = select_bytes(words[2], words[3], 0x7362);
  words[0] = select_bytes(low01, low23, 0x5410);
  words[1] = select_bytes(low01, low23, 0x7632);
  words[2] = select_bytes(high01, high23, 0x5410);
  words[3] = select_bytes(high01, high23, 0x7632);
}

}  // namespace quaver::cuda
