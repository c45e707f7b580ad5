/// The arguments of the one-pass cross entropy (cross_entropy_once.cuh), and how its warps share the work.
#pragma once

#include <cstdint>

#include "ops/cuda/cross_entropy_rows.cuh"
#include "ops/cuda/other_blocks.cuh"
#include "ops/cuda/shared_access.cuh"
#include "ops/cuda/sink.cuh"

namespace quaver::cuda {

/// Of a block's warps, some write strips of columns, some sum parts of rows, and one joins rows.
constexpr int kStripWarps = 4, kSumWarps = 5, kPassThreads = 32 * (kStripWarps + kSumWarps + 1);
/// A strip's warp writes it in tiles, downwards: a tile has the strip's columns of a group of rows.
constexpr int kStripCols = 64, kGroupRows = 32, kLaneRows = 8;
constexpr int kTilesAhead = 6;  // of a warp in shared memory, most of them on their way
/// How many groups sums may be ahead of tiles. With more, the second read of a group misses the second-level cache, with fewer, warps are idle.
constexpr int kGroupsAhead = 7;
constexpr unsigned kPause = 40;  // ns, between looks for what is not there yet

constexpr int kPackBytes = 2 * kPack,
              kWarpBytes = 32 * kPackBytes;  // of a lane's pack, of those of all lanes
constexpr int kStageBytes = 4096;            // of a tile, or of a part
static_assert(kStageBytes == 2 * kPartCols && kStageBytes == 2 * kGroupRows * kStripCols);
/// Transposed bytes of four groups are stored at once: how wide these stores are decides the time.
constexpr int kRunGroups = 4, kRunBytes = kRunGroups * kGroupRows;
/// Where those of a column of the strip begin in shared memory: 16 bytes after every 8 columns keep lanes on different banks.
constexpr int run_at(int column) {
  return column * kRunBytes + column / 8 * 16;
}
constexpr int kRunsBytes = run_at(kStripCols);
constexpr int kPassSharedBytes =
    kStripWarps * (kRunsBytes + kTilesAhead * kStageBytes) + kSumWarps * kStageBytes;

/// Results are those of `sink`, whose values nobody wants, and losses. Matrices lie on 16 bytes, and so do their rows.
struct LogitPass {
  Matrix<bf16> logits;
  TargetRows of_rows;  ///< gradients are missing at first
  Sink<bf16> sink;
  Part* parts;        ///< [rows, row_parts], missing at first
  unsigned* tickets;  ///< of Ticket, missing at first
  GradientScale scale;
  std::int32_t rows, cols, groups, strips, row_parts;
  std::uint32_t row_magic;  ///< the row of a part is part * row_magic / 2^31
};
enum Ticket : int { kPartTicket = 0, kRowTicket = 32, kTickets = 64 };  // on lines of their own

__device__ inline float rounded_to_bf16(float x) {
  return high_half(pack_pair(0.0f, x));
}

}  // namespace quaver::cuda
