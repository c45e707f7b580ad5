/// Sums over parts of dk and dv: where there are few tiles of keys, several blocks of threads share a tile's queries.
/// Each writes its sums in FP32; then they are added in the order of the parts.
#pragma once

#include "ops/cuda/attention_backward.cuh"

namespace quaver::cuda {

enum class KeyGradient { dk, dv };

/// The sums of one part for a key/value head: [key_len, head_dim].
__device__ inline HeadRows<float> key_sums(const AttentionArguments<bf16>& args, const Workspace& workspace,
                                           int batch, int kv_head, int part, KeyGradient gradient) {
  const std::int64_t head = static_cast<std::int64_t>(batch) * args.kv_heads + kv_head;
  const std::int64_t matrix = (head * workspace.parts + part) * 2 + static_cast<int>(gradient);
  return {workspace.key_sums + matrix * args.key_len * args.head_dim, args.head_dim};
}

/// Grid: blocks of kAttentionWarps keys, key/value heads, sequences.
template <int kColumns>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_key_sums(AttentionArguments<bf16> args, GradientArguments<bf16> gradients) {
  const int lane = threadIdx.x % 32, kv_head = blockIdx.y, batch = blockIdx.z;
  const int key = static_cast<int>(blockIdx.x) * kAttentionWarps + static_cast<int>(threadIdx.x) / 32;
  if (key >= args.key_len) return;
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.key_len + key;
  bool has_nan = false;
  const auto add_parts = [&](KeyGradient gradient, HeadRows<bf16> to, float factor) {
    LaneRow<kColumns> sum;
    for (int part = 0; part < gradients.workspace.parts; ++part) {
      const auto of_part = key_sums(args, gradients.workspace, batch, kv_head, part, gradient);
      sum.add(1, of_part.from(key).data, args.head_dim, lane);
    }
    sum.store(head_rows(to, row, kv_head, args.head_dim).data, factor, args.head_dim, lane);
    for (const float x : sum.at) has_nan = has_nan || x != x;
  };
  add_parts(KeyGradient::dk, gradients.dk, args.scale);
  add_parts(KeyGradient::dv, gradients.dv, 1);
  if (__ballot_sync(kAllLanes, has_nan) == 0) return;
  differentiate_key<bf16, kColumns>(args, gradients, batch, kv_head, key, lane);
}

}  // namespace quaver::cuda
