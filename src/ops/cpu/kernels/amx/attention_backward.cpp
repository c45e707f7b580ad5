/// The backward pass of attention of BF16 queries, keys and values, its products by the matrix unit.
#include "ops/cpu/kernels/attention_backward.h"

namespace quaver::cpu::amx {
namespace {

std::int64_t scratch_size(const AttentionSequence& sequence) {
  return BackwardScratch<Bf16>(sequence, nullptr).size;
}

void backward_by_tiles(const AttentionSequence& sequence, const AttentionHeadBackward& head, float* scratch) {
  const TileScope tiles;
  backward<Bf16>(sequence, head, scratch);
}

}  // namespace

const AttentionBackwardKernels attention_backward_kernels = {
    .packed_size = backward_pack_size,
    .pack = pack<Bf16>,
    .gradient_size = gradient_size,
    .scratch = scratch_size,
    .backward = backward_by_tiles,
    .sum_heads = sum_heads<Bf16>,
};

}  // namespace quaver::cpu::amx
