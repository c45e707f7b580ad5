/// Attention without tensor cores: FP32, and heads too wide for the tiles. One warp per row of the result.
/// Its lanes first take one of 32 rows of the other side each (scores), then share them to add to the result,
/// whose columns lie across the lanes, kColumns in each.
#pragma once

#include "ops/cuda/attention_backward.cuh"

namespace quaver::cuda {

/// Columns lane, lane + 32, ... of one row.
template <int kColumns>
struct LaneRow {
  float at[kColumns] = {};

  __device__ void scale(float factor) {
    for (float& x : at) x *= factor;
  }
  template <typename T>
  __device__ void add(float factor, const T* row, int width, int lane) {
    for (int c = 0; c < kColumns; ++c) {
      if (lane + 32 * c < width) at[c] += factor * as_float(row[lane + 32 * c]);
    }
  }
  template <typename T>
  __device__ void store(T* row, float factor, int width, int lane) const {
    for (int c = 0; c < kColumns; ++c) {
      if (lane + 32 * c < width) row[lane + 32 * c] = round_as<T>(at[c] * factor);
    }
  }
};

template <typename T>
__device__ float dot(const T* a, const T* b, int width) {
  float sum = 0;
  for (int d = 0; d < width; ++d) sum += as_float(a[d]) * as_float(b[d]);
  return sum;
}

/// The row of the result that this warp computes: grid: rows / kAttentionWarps, heads, sequences.
__device__ inline int row_of_warp() {
  return blockIdx.x * kAttentionWarps + threadIdx.x / 32;
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward_scalar(AttentionArguments<T> args) {
  const int query = row_of_warp(), lane = threadIdx.x % 32, head = blockIdx.y, batch = blockIdx.z;
  if (query >= args.query_len) return;
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const T* q = head_rows(args.q, row, head, args.head_dim).data;
  const auto k = head_rows(args.k, key_row, args.kv_head(head), args.head_dim);
  const auto v = head_rows(args.v, key_row, args.kv_head(head), args.head_dim);
  const KeyRange keys = visible_keys(args, batch, query);

  LaneRow<kColumns> out;
  float maximum = -kInfinity, sum = 0;
  for (int key = keys.first; key <= keys.last; key += 32) {
    const bool seen = key + lane <= keys.last;
    const float score = seen ? args.scale * dot(q, k.from(key + lane).data, args.head_dim) : -kInfinity;
    float larger = fmaxf(maximum, score);
    for (int step = 16; step > 0; step /= 2) larger = fmaxf(larger, __shfl_xor_sync(kAllLanes, larger, step));
    const float base = larger == -kInfinity ? 0.0f : larger;
    const float shrink = expf(maximum - base), p = seen ? expf(score - base) : 0.0f;
    maximum = larger;
    sum = sum * shrink + p;
    out.scale(shrink);
    for (int j = 0; j < 32 && key + j <= keys.last; ++j) {
      out.add(__shfl_sync(kAllLanes, p, j), v.from(key + j).data, args.head_dim, lane);
    }
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  out.store(head_rows(args.out, row, head, args.head_dim).data, 1 / sum, args.head_dim, lane);
  if (args.lse && lane == 0) args.lse[row * args.lse_stride + head] = maximum + logf(sum);
}

struct ScalarGradient {
  float p, ds;
};
/// Of one query and key: the probability, and the gradient of their score but for the factor `scale`.
template <typename T>
__device__ ScalarGradient differentiate(const T* q, const T* dout, const T* k, const T* v,
                                        const QueryStatistics& query, float scale, int width) {
  const float p = exp2f(scale * kLog2E * dot(q, k, width) - query.lse);
  return {p, p * (dot(dout, v, width) - query.delta)};
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_query_gradients_scalar(AttentionArguments<T> args, GradientArguments<T> gradients) {
  const int query = row_of_warp(), lane = threadIdx.x % 32, head = blockIdx.y, batch = blockIdx.z;
  if (query >= args.query_len) return;
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const T* q = head_rows(args.q, row, head, args.head_dim).data;
  const T* dout = head_rows(gradients.dout, row, head, args.head_dim).data;
  const auto k = head_rows(args.k, key_row, args.kv_head(head), args.head_dim);
  const auto v = head_rows(args.v, key_row, args.kv_head(head), args.head_dim);
  const QueryStatistics statistics = gradients.workspace.of(batch, args.heads, head)[query];

  LaneRow<kColumns> dq;
  for (int key = statistics.keys.first; key <= statistics.keys.last; key += 32) {
    float ds = 0;
    if (key + lane <= statistics.keys.last) {
      ds = differentiate(q, dout, k.from(key + lane).data, v.from(key + lane).data, statistics, args.scale,
                         args.head_dim)
               .ds;
    }
    for (int j = 0; j < 32 && key + j <= statistics.keys.last; ++j) {
      dq.add(__shfl_sync(kAllLanes, ds, j), k.from(key + j).data, args.head_dim, lane);
    }
  }
  dq.store(head_rows(gradients.dq, row, head, args.head_dim).data, args.scale, args.head_dim, lane);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_key_gradients_scalar(AttentionArguments<T> args, GradientArguments<T> gradients) {
  const int key = row_of_warp(), lane = threadIdx.x % 32, kv_head = blockIdx.y, batch = blockIdx.z;
  if (key >= args.key_len) return;
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.key_len + key;
  const std::int64_t query_row = static_cast<std::int64_t>(batch) * args.query_len;
  const T* k = head_rows(args.k, row, kv_head, args.head_dim).data;
  const T* v = head_rows(args.v, row, kv_head, args.head_dim).data;
  const int group = args.heads / args.kv_heads;

  LaneRow<kColumns> dk, dv;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const auto q = head_rows(args.q, query_row, head, args.head_dim);
    const auto dout = head_rows(gradients.dout, query_row, head, args.head_dim);
    const QueryStatistics* const statistics = gradients.workspace.of(batch, args.heads, head);
    for (int query = max(0, key - args.offset()); query < args.query_len; query += 32) {
      ScalarGradient of_lane{0, 0};
      bool seen = false;
      if (query + lane < args.query_len && statistics[query + lane].keys.holds(key)) {
        seen = true;
        of_lane = differentiate(q.from(query + lane).data, dout.from(query + lane).data, k, v,
                                statistics[query + lane], args.scale, args.head_dim);
      }
      const unsigned seeing = __ballot_sync(kAllLanes, seen);
      for (int i = 0; i < 32; ++i) {
        const float p = __shfl_sync(kAllLanes, of_lane.p, i), ds = __shfl_sync(kAllLanes, of_lane.ds, i);
        if ((seeing >> i & 1) == 0) continue;
        dv.add(p, dout.from(query + i).data, args.head_dim, lane);
        dk.add(ds, q.from(query + i).data, args.head_dim, lane);
      }
    }
  }
  dk.store(head_rows(gradients.dk, row, kv_head, args.head_dim).data, args.scale, args.head_dim, lane);
  dv.store(head_rows(gradients.dv, row, kv_head, args.head_dim).data, 1, args.head_dim, lane);
}

}  // namespace quaver::cuda
