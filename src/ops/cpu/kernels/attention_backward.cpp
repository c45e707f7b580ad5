#include "ops/cpu/kernels/attention_backward.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

std::int64_t scratch_size(const AttentionSequence& sequence) {
  return sequence.element == Element::bf16 ? BackwardScratch<Bf16>(sequence, nullptr).size
                                           : BackwardScratch<float>(sequence, nullptr).size;
}

void pack_any(const AttentionSequence& sequence, const HeadMatrix& k, const HeadMatrix& v, float* packed) {
  sequence.element == Element::bf16 ? pack<Bf16>(sequence, k, v, packed)
                                    : pack<float>(sequence, k, v, packed);
}

void backward_any(const AttentionSequence& sequence, const AttentionHeadBackward& head, float* scratch) {
  sequence.element == Element::bf16 ? backward<Bf16>(sequence, head, scratch)
                                    : backward<float>(sequence, head, scratch);
}

void sum_heads_any(const AttentionSequence& sequence, float* gradients, std::int64_t heads,
                   const HeadMatrix& to) {
  sequence.element == Element::bf16 ? sum_heads<Bf16>(sequence, gradients, heads, to)
                                    : sum_heads<float>(sequence, gradients, heads, to);
}

}  // namespace

const AttentionBackwardKernels attention_backward_kernels = {
    .packed_size = backward_pack_size,
    .pack = pack_any,
    .gradient_size = gradient_size,
    .scratch = scratch_size,
    .backward = backward_any,
    .sum_heads = sum_heads_any,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
