/// Cross entropy and its gradient, as FP8 bytes and transposed ones, with one read of memory.
///
/// A block's warps have roles. Some sum parts of rows: the largest, and the sum of exponentials. One joins a row's parts into its offset.
/// The others own a strip of columns each, for good, and write it downwards, a group of rows at a time, as offsets come. All blocks draw
/// parts and rows from two counters, in the order of rows, but a block starts a part only if its own strips are at most kGroupsAhead
/// groups behind: that far apart, the second read of a group still finds it in the second-level cache. Each waits for earlier rows only:
/// blocks need not all run at once.
#pragma once

#include "ops/cuda/cross_entropy_strips.cuh"
#include "ops/cuda/cross_entropy_sums.cuh"
#include "ops/cuda/device_backend.h"

namespace quaver::cuda {

template <Fp8 kFormat>
__global__ void __launch_bounds__(kPassThreads, 1)
    cross_entropy_once(const __grid_constant__ LogitPass pass) {
  __shared__ unsigned tiles_begun;
  if (threadIdx.x == 0) tiles_begun = 0;
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) record_once(pass.sink, std::int64_t{pass.rows} * pass.cols);
  const int lane = threadIdx.x % 32, warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
  const SharedAddress runs = opaque(shared_address(dynamic_shared_memory()), lane),
                      progress = shared_address(&tiles_begun);
  const SharedAddress stages = runs + kStripWarps * kRunsBytes,
                      parts = stages + kStripWarps * kTilesAhead * kStageBytes;
  const auto blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int first = block * pass.strips / blocks, last = (block + 1) * pass.strips / blocks;
  if (warp < kStripWarps) {
    if (first + warp < last)
      write_strip<kFormat>(pass, lane, runs + warp * kRunsBytes, stages + warp * kTilesAhead * kStageBytes,
                           progress, first + warp);
  } else if (warp < kStripWarps + kSumWarps) {
    sum_parts(pass, lane, parts + (warp - kStripWarps) * kStageBytes, progress, last - first);
  } else {
    join_rows<kFormat>(pass, lane);
  }
}

/// With fewer rows, those before the first and after the last tile take too long. 512 x 32768 is as fast in two passes.
constexpr std::int64_t kEnoughRows = 1024;

/// Whether one pass takes such operands, and pays on such a chip: strips for more than 5 of 8 of its warps. Chips before sm_90 and those of
/// sm_120 have too little shared memory.
inline bool suits_one_pass(const Tensor& logits, float gradient_scale, const Output& dlogits,
                           const ChipSize& chip) {
  constexpr std::int64_t kMostParts = std::int64_t{1} << 31;  // of LogitPass::row_magic
  const QuantizedTensor& quantized = dlogits.quantized;
  const Quantizer& quantizer = dlogits.quantizer;
  const std::int64_t rows = logits.rows(), cols = logits.cols(), row_parts = blocks_for(cols, kPartCols),
                     strips = cols / kStripCols,
                     strip_warps = std::int64_t{kStripWarps} * chip.multiprocessors;
  return chip.shared_bytes >= kPassSharedBytes && logits.dtype() == DType::bf16 && !dlogits.values &&
         quantized.bytes && quantized.transposed && quantizer.amax && quantizer.counters &&
         gradient_scale > 0 && rows >= kEnoughRows && rows % kRunBytes == 0 && cols % kStripCols == 0 &&
         8 * strips > 5 * strip_warps && strips <= strip_warps && rows * row_parts * row_parts < kMostParts &&
         packs(logits) && packs(quantized.bytes) &&
         run_of(matrix_of<std::uint8_t>(quantized.transposed)) == 16;
}

}  // namespace quaver::cuda
