/// Attention without tensor cores: FP32, and heads too wide for the tiles. One warp per row of the result.
#pragma once

#include "ops/cuda/attention_forward.cuh"

namespace quaver::cuda {

/// The row of the result that this warp computes: grid: rows / kAttentionWarps, heads, sequences.
__device__ inline int row_of_warp() {
  return blockIdx.x * kAttentionWarps + threadIdx.x / 32;
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward_scalar(AttentionArguments<T> args) {
  if (row_of_warp() < args.query_len)
    attend_row<T, kColumns>(args, blockIdx.z, blockIdx.y, row_of_warp(), threadIdx.x % 32);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_query_gradients_scalar(AttentionArguments<T> args, GradientArguments<T> gradients) {
  if (row_of_warp() < args.query_len)
    differentiate_query<T, kColumns>(args, gradients, blockIdx.z, blockIdx.y, row_of_warp(),
                                     threadIdx.x % 32);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_key_gradients_scalar(AttentionArguments<T> args, GradientArguments<T> gradients) {
  if (row_of_warp() < args.key_len)
    differentiate_key<T, kColumns>(args, gradients, blockIdx.z, blockIdx.y, row_of_warp(), threadIdx.x % 32);
}

}  // namespace quaver::cuda
