/// What warpgroups need beside products: barriers in shared memory, and tiles of a head that Hopper's copy engine
/// brings there. On the device each is one instruction of sm_90; the emulation does the same in plain code.
///
/// A tile of kRows x kWidth elements (kWidth a multiple of 64) is kWidth / 64 panels. A panel has kRows rows of 64
/// elements, 128 bytes; within each 8 rows, 16-byte piece c of row r stands where piece c ^ r would: the "128-byte
/// swizzle", which lets 8 rows of one column be read from 8 groups of banks. Panels lie on 1024 bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "ops/cuda/attention_warp.cuh"
#include "ops/cuda/tile_map.h"

namespace quaver::cuda {

constexpr int kPanelRowBytes = 2 * kPanelColumns;

#ifdef __CUDACC__

struct alignas(8) Barrier {
  std::uint64_t state;
};

/// Each phase ends when `arrivals` threads have arrived and all bytes expected in it have come. Phase 0 begins.
__device__ inline void begin_barrier(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals)
               : "memory");
}
/// After the last begin_barrier of a thread, before the block's threads meet.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
/// Arrives, and makes the phase last until copies have brought so many more bytes.
__device__ inline void arrive_expecting(Barrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
/// Waits for the end of a phase of this parity; the one before the first counts as ended.
__device__ inline void wait_for_phase(Barrier& barrier, int parity) {
  int ended = 0;
  while (!ended) {
    asm volatile(
        "{\n.reg .pred ended;\nmbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\nselp.b32 %0, 1, 0, "
        "ended;\n}"
        : "=r"(ended)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  }
}

/// Copies a panel: 64 columns of a head from `column` on, the map's number of rows of a sequence from `row` on;
/// zeros past the head's and the sequence's end.
__device__ inline void copy_panel(bf16* to, const TileMap& map, int column, int head, int row, int sequence,
                                  Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(column), "r"(head), "r"(row), "r"(sequence)
      : "memory");
}
/// Copies a multiple of 16 bytes between addresses on 16 bytes.
__device__ inline void copy_run(void* to, const void* from, int bytes, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

#else

struct alignas(8) Barrier {
  std::int8_t arrivals, missing;  ///< of a phase; until this one's end
  std::uint8_t parity;
  std::int32_t bytes;  ///< expected in this phase
};

/// Copies that have been started and have not come yet: they come as late as they may, when somebody waits for them.
struct PendingTileCopy {
  Barrier* barrier;
  int bytes;
  std::function<void()> perform;
};
inline std::vector<PendingTileCopy>& pending_tile_copies() {
  static std::vector<PendingTileCopy> copies;
  return copies;
}

inline void end_phase_if_due(Barrier& barrier) {
  if (barrier.missing > 0) return;
  auto& copies = pending_tile_copies();
  const auto is_here = [&](const PendingTileCopy& copy) { return copy.barrier == &barrier; };
  int bytes = 0;
  for (const auto& copy : copies) bytes += is_here(copy) ? copy.bytes : 0;
  if (bytes != barrier.bytes) return;
  for (const auto& copy : copies) {
    if (is_here(copy)) copy.perform();
  }
  std::erase_if(copies, is_here);
  barrier = {barrier.arrivals, barrier.arrivals, static_cast<std::uint8_t>(1 - barrier.parity), 0};
}

__device__ inline void begin_barrier(Barrier& barrier, int arrivals) {
  const auto count = static_cast<std::int8_t>(arrivals);
  barrier = {count, count, 0, 0};
}
__device__ inline void publish_barriers() {}
__device__ inline void arrive(Barrier& barrier) {
  --barrier.missing;
  if (barrier.bytes == 0) end_phase_if_due(barrier);
}
__device__ inline void arrive_expecting(Barrier& barrier, int bytes) {
  barrier.bytes += bytes;
  arrive(barrier);
}
__device__ inline void wait_for_phase(Barrier& barrier, int parity) {
  emulation::wait_until([&] {
    if (barrier.parity == parity) end_phase_if_due(barrier);
    return barrier.parity != parity;
  });
}

__device__ inline void copy_later(void* to, int bytes, Barrier& barrier, std::function<void()> perform) {
  constexpr int kUnknown = 0xFF;
  std::memset(to, kUnknown, bytes);
  pending_tile_copies().push_back({&barrier, bytes, std::move(perform)});
}

__device__ inline void copy_panel(bf16* to, const TileMap& map, int column, int head, int row, int sequence,
                                  Barrier& barrier) {
  TileSource from;
  std::memcpy(static_cast<void*>(&from), &map, sizeof(from));
  copy_later(to, static_cast<int>(from.tile_rows) * kPanelRowBytes, barrier, [=] {
    for (int r = 0; r < from.tile_rows; ++r) {
      for (int c = 0; c < kPanelColumns; ++c) {
        const bool inside = row + r < from.rows && column + c < from.head_dim;
        const std::int64_t at = (static_cast<std::int64_t>(sequence) * from.rows + row + r) * from.stride +
                                head * from.head_dim + column + c;
        to[r * kPanelColumns + (c / 8 ^ r % 8) * 8 + c % 8] = inside ? from.data[at] : bf16{};
      }
    }
  });
}
__device__ inline void copy_run(void* to, const void* from, int bytes, Barrier& barrier) {
  copy_later(to, bytes, barrier, [=] { std::memcpy(to, from, bytes); });
}

#endif

/// Starts copying a tile; the barrier's phase must expect kRows * kWidth * 2 bytes.
template <int kRows, int kWidth>
__device__ void copy_tile(bf16* to, const TileMap& map, int head, int row, int sequence, Barrier& barrier) {
#pragma unroll
  for (int column = 0; column < kWidth; column += kPanelColumns) {
    copy_panel(to + kRows * column, map, column, head, row, sequence, barrier);
  }
}

}  // namespace quaver::cuda
