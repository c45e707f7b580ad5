/// Attention of BF16 queries, keys and values, its products by the matrix unit.
#include "ops/cpu/kernels/attention_forward.h"

namespace quaver::cpu::amx {
namespace {

void forward_by_tiles(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
                      std::int64_t begin, std::int64_t end, float* scratch) {
  const TileScope tiles;
  forward<Bf16>(sequence, head, packed, begin, end, scratch);
}

}  // namespace

const AttentionKernels attention_kernels = {
    .packed_size = forward_pack_size,
    .pack_keys = pack_key_blocks<Bf16>,
    .pack_values = pack_values<Bf16>,
    .forward_scratch = forward_scratch<Bf16>,
    .forward = forward_by_tiles,
    .one_query = nullptr,
    .backward = &attention_backward_kernels,
};

}  // namespace quaver::cpu::amx
