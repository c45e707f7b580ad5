#include "ops/cpu/levels.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {

extern const AdamWKernels adamw_kernels;
extern const AttentionKernels attention_kernels;
extern const Bf16BlockKernels bf16_block_kernels;
extern const BlockCastKernels block_cast_kernels;
extern const CastKernels cast_kernels;
extern const CrossEntropyKernels cross_entropy_kernels;
extern const EmbeddingKernels embedding_kernels;
extern const GemmKernels gemm_kernels;
extern const HeadKernels head_kernels;
extern const NormKernels norm_kernels;
extern const PeakKernels peak_kernels;
extern const PointwiseKernels pointwise_kernels;
extern const ReductionKernels reduction_kernels;

extern const Kernels kernels;
const Kernels kernels = {
    .adamw = &adamw_kernels,
    .attention = &attention_kernels,
    .bf16_blocks = &bf16_block_kernels,
    .block_cast = &block_cast_kernels,
    .cast = &cast_kernels,
    .cross_entropy = &cross_entropy_kernels,
    .embedding = &embedding_kernels,
    .gemm = &gemm_kernels,
    .heads = &head_kernels,
    .norms = &norm_kernels,
    .peak = &peak_kernels,
    .pointwise = &pointwise_kernels,
    .reductions = &reduction_kernels,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
