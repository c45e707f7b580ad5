#include "ops/cpu/kernels/attention_forward.h"
#if defined(__AVX512BF16__)
#include "ops/cpu/kernels/attention_query.h"
#endif

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

void pack_keys(const AttentionSequence& sequence, const HeadMatrix& k, float* packed) {
  if (sequence.element == Element::bf16) return pack_key_blocks<Bf16>(sequence, k, packed);
  pack_key_blocks<float>(sequence, k, packed);
}

void pack_values_any(const AttentionSequence& sequence, const HeadMatrix& v, float* packed) {
  if (sequence.element == Element::bf16) return pack_values<Bf16>(sequence, v, packed);
  pack_values<float>(sequence, v, packed);
}

std::int64_t forward_scratch_any(const AttentionSequence& sequence) {
  return sequence.element == Element::bf16 ? forward_scratch<Bf16>(sequence)
                                           : forward_scratch<float>(sequence);
}

void forward_any(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
                 std::int64_t begin, std::int64_t end, float* scratch) {
  if (sequence.element == Element::bf16) return forward<Bf16>(sequence, head, packed, begin, end, scratch);
  forward<float>(sequence, head, packed, begin, end, scratch);
}

#if defined(__AVX512BF16__)
constexpr const OneQueryKernels* kOneQuery = &kOneQueryKernels;
#else
constexpr const OneQueryKernels* kOneQuery = nullptr;
#endif

}  // namespace

const AttentionKernels attention_kernels = {
    .packed_size = forward_pack_size,
    .pack_keys = pack_keys,
    .pack_values = pack_values_any,
    .forward_scratch = forward_scratch_any,
    .forward = forward_any,
    .one_query = kOneQuery,
    .backward = &attention_backward_kernels,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
