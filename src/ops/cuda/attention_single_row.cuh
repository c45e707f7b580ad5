/// One row of attention's results by one warp, in FP32 and without tensor cores: where a head or a type does not fit
/// the tiles, and where a tile's row became NaN. Tiles multiply what a row does not see by 0, and 0 times a NaN or an
/// infinity is NaN; here a row meets only what it sees.
///
/// The lanes first take one of 32 rows of the other side each (scores), then share them to add to the result, whose
/// columns lie across the lanes, kColumns in each.
#pragma once

#include "ops/cuda/attention_rows.cuh"
#include "ops/cuda/exponential.cuh"

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

/// Whether every column of a row is NaN, which no further term changes. By all lanes of a warp.
template <int kColumns>
__device__ bool is_lost(const LaneRow<kColumns>& row, int width, int lane) {
  bool lost = true;
  for (int c = 0; c < kColumns; ++c) lost = lost && (lane + 32 * c >= width || row.at[c] != row.at[c]);
  return __ballot_sync(kAllLanes, lost) == kAllLanes;
}

/// One query's out and lse, by a warp.
template <typename T, int kColumns>
__device__ void attend_row(const AttentionArguments<T>& args, int batch, int head, int query, int lane) {
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const T* q = head_rows(args.q, row, head, args.head_dim).data;
  const auto k = head_rows(args.k, key_row, args.kv_head(head), args.head_dim);
  const auto v = head_rows(args.v, key_row, args.kv_head(head), args.head_dim);
  const KeyRange keys = visible_keys(args, batch, query);

  LaneRow<kColumns> out;
  float maximum = -kInfinity, sum = 0;
  for (int key = keys.first; key <= keys.last && !is_lost(out, args.head_dim, lane); key += 32) {
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

/// One query's dq, by a warp.
template <typename T, int kColumns>
__device__ void differentiate_query(const AttentionArguments<T>& args, const GradientArguments<T>& gradients,
                                    int batch, int head, int query, int lane) {
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.query_len + query;
  const std::int64_t key_row = static_cast<std::int64_t>(batch) * args.key_len;
  const T* q = head_rows(args.q, row, head, args.head_dim).data;
  const T* dout = head_rows(gradients.dout, row, head, args.head_dim).data;
  const auto k = head_rows(args.k, key_row, args.kv_head(head), args.head_dim);
  const auto v = head_rows(args.v, key_row, args.kv_head(head), args.head_dim);
  const QueryStatistics statistics =
      gradients.workspace.of(batch, args.heads, head, query, args.offset() + query);

  LaneRow<kColumns> dq;
  for (int key = statistics.keys.first; key <= statistics.keys.last && !is_lost(dq, args.head_dim, lane);
       key += 32) {
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

/// One key's dk and dv, by a warp.
template <typename T, int kColumns>
__device__ void differentiate_key(const AttentionArguments<T>& args, const GradientArguments<T>& gradients,
                                  int batch, int kv_head, int key, int lane) {
  const std::int64_t row = static_cast<std::int64_t>(batch) * args.key_len + key;
  const std::int64_t query_row = static_cast<std::int64_t>(batch) * args.query_len;
  const T* k = head_rows(args.k, row, kv_head, args.head_dim).data;
  const T* v = head_rows(args.v, row, kv_head, args.head_dim).data;
  const int group = args.heads / args.kv_heads;

  LaneRow<kColumns> dk, dv;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const auto q = head_rows(args.q, query_row, head, args.head_dim);
    const auto dout = head_rows(gradients.dout, query_row, head, args.head_dim);
    for (int query = max(0, key - args.offset()); query < args.query_len; query += 32) {
      if (is_lost(dk, args.head_dim, lane) && is_lost(dv, args.head_dim, lane)) break;
      ScalarGradient of_lane{0, 0};
      bool seen = false;
      const int of = query + lane;
      if (of < args.query_len) {
        const QueryStatistics statistics =
            gradients.workspace.of(batch, args.heads, head, of, args.offset() + of);
        seen = statistics.keys.holds(key);
        if (seen)
          of_lane =
              differentiate(q.from(of).data, dout.from(of).data, k, v, statistics, args.scale, args.head_dim);
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

/// f(row) by all lanes for the rows, below `rows`, of a warp's accumulators that hold a NaN in some lane.
template <int kRows, typename F>
__device__ void for_nan_rows(const bool (&has_nan)[kRows][2], int rows, const F& f) {
  for_rows<kRows>([&](int i, int half) {
    const unsigned lanes = __ballot_sync(kAllLanes, has_nan[i][half]);
    if (lanes == 0) return;
    for (int quad = 0; quad < 8; ++quad) {
      const int row = 16 * i + 8 * half + quad;
      if ((lanes >> 4 * quad & 0xF) != 0 && row < rows) f(row);
    }
  });
}

/// Marks the rows of a lane that hold a NaN.
template <int kRows, int kColumns>
__device__ void find_nan(const Accumulators<kRows, kColumns>& sum, bool (&has_nan)[kRows][2]) {
  for_rows<kRows>([&](int i, int half) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float* pair = sum.at[i][j] + 2 * half;
      has_nan[i][half] = has_nan[i][half] || pair[0] != pair[0] || pair[1] != pair[1];
    }
  });
}

}  // namespace quaver::cuda
