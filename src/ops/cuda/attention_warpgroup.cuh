/// BF16 attention by warpgroups, for sm_90a: what the three kernels share. A block of threads is a producer, whose
/// first warp has tiles copied to shared memory, and consumers, a warpgroup each, that multiply them: two, or as many as
/// a kernel says. A block takes a tile of many steps and one of few: the triangle of causal attention is cut into equal
/// pairs.
#pragma once

#include "ops/cuda/attention_backward.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace quaver::cuda {

constexpr int kConsumers = 2, kConsumerRows = 64;
constexpr int kWarpgroupTile = kConsumers * kConsumerRows;  ///< rows of a gradient that a block takes at once
constexpr int kWarpgroupBlock = (kConsumers + 1) * kWarpgroupThreads;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

/// The same in every lane, as the compiler must see to keep products running across branches.
__device__ inline int warpgroup_of_thread() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / kWarpgroupThreads), 0);
}

/// The two tiles of a block, of `tiles` in a grid of (tiles + 1) / 2; the second is absent in the middle.
struct TilePair {
  int first, second;
  __device__ int count() const { return first == second ? 1 : 2; }
  __device__ int at(int i) const { return i == 0 ? first : second; }
};
__device__ inline TilePair tile_pair(int tiles, int pair) {
  return {tiles - 1 - pair, pair};
}

/// Counts the uses of a ring of kStages buffers.
template <int kStages>
struct RingPosition {
  int uses = 0;
  __device__ int stage() const { return uses % kStages; }
  __device__ int parity() const { return uses / kStages % 2; }
  __device__ void next() { ++uses; }
  __device__ RingPosition last() const { return {uses - 1}; }
};

/// A buffer of a ring: `full` ends a phase when its copies have come, `empty` when every consumer's warps have read it.
struct BufferBarriers {
  Barrier full, empty;
};
__device__ inline void begin_buffers(BufferBarriers* buffers, int count, int consumers = kConsumers) {
  for (int i = 0; i < count; ++i) {
    begin_barrier(buffers[i].full, 1);
    begin_barrier(buffers[i].empty, consumers * kWarpgroupThreads / 32);
  }
}
template <int kStages>
__device__ void wait_until_empty(BufferBarriers* buffers, const RingPosition<kStages>& at) {
  wait_for_phase(buffers[at.stage()].empty, 1 - at.parity());
}
/// By one thread: waits until the buffer may be written and announces what will be.
template <int kStages>
__device__ Barrier& open_buffer(BufferBarriers* buffers, const RingPosition<kStages>& at, int bytes) {
  wait_until_empty(buffers, at);
  arrive_expecting(buffers[at.stage()].full, bytes);
  return buffers[at.stage()].full;
}
template <int kStages>
__device__ void wait_for_buffer(BufferBarriers* buffers, const RingPosition<kStages>& at) {
  wait_for_phase(buffers[at.stage()].full, at.parity());
}
/// By whole warps. An arrival speaks only for what its own thread has read, so the lanes meet before the one that arrives.
template <int kStages>
__device__ void release_buffer(BufferBarriers* buffers, const RingPosition<kStages>& at, int lane) {
  __syncwarp();
  if (lane == 0) arrive(buffers[at.stage()].empty);
}

/// The smallest and the largest first key of `rows` queries; by a whole warp.
__device__ inline FirstKeys first_keys_of_queries(const AttentionArguments<bf16>& args, int batch, int query,
                                                  int rows, int lane) {
  if (!args.first_key) return {0, 0};
  FirstKeys found{INT_MAX, INT_MIN};
  for (int row = lane; row < rows; row += 32) {
    const int first = visible_keys(args, batch, query + row).first;
    found = {min(found.smallest, first), max(found.largest, first)};
  }
  return extremes_of_lanes(found);
}

}  // namespace quaver::cuda
