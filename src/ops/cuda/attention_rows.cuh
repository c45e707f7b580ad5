/// Which rows a block of threads works on, and which keys a query sees.
#pragma once

#include <climits>
#include <cstdint>
#include <limits>

#include "ops/cuda/attention_tile.cuh"

namespace quaver::cuda {

constexpr float kLn2 = 0.69314718f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// AttentionCall for device code.
template <typename T>
struct AttentionArguments {
  int query_len, key_len, heads, kv_heads, head_dim;
  float scale;
  std::int64_t aligned;  ///< as load_tile means it, for all matrices; a number of this size: no padding
  HeadRows<const T> q, k, v;
  const std::int32_t* first_key;
  HeadRows<T> out;
  float* lse;
  std::int64_t lse_stride;

  /// The key position of query 0.
  __device__ int offset() const { return key_len - query_len; }
  __device__ int kv_head(int head) const { return head / (heads / kv_heads); }
};

/// `matrix` from a row of a sequence on, at the columns of a head.
template <typename T>
__device__ HeadRows<T> head_rows(HeadRows<T> matrix, std::int64_t row, int head, int head_dim) {
  return {matrix.data + row * matrix.stride + head * head_dim, matrix.stride};
}

/// The keys that a query sees, both inclusive; none if last < first.
struct KeyRange {
  int first, last;
  __device__ bool holds(int key) const { return key >= first && key <= last; }
};

constexpr KeyRange kNoKeys{INT_MAX, -1};

/// Of query `query` of sequence `batch`; no keys for a query past the end of a tile.
template <typename T>
__device__ KeyRange visible_keys(const AttentionArguments<T>& args, int batch, int query) {
  if (query >= args.query_len) return kNoKeys;
  const int first =
      args.first_key ? args.first_key[static_cast<std::int64_t>(batch) * args.query_len + query] : 0;
  return {first > 0 ? first : 0, args.offset() + query};
}

/// What backward knows of a query and head. A tile's rows past the last query see no key.
struct alignas(16) QueryStatistics {
  float lse;    ///< in units of log2
  float delta;  ///< the sum of dout * out
  KeyRange keys;
};

/// The smallest and the largest first_key of kStatisticsRows queries (rows past the end: as if INT_MAX in
/// `largest` alone).
constexpr int kStatisticsRows = 64;
struct alignas(8) FirstKeys {
  int smallest, largest;
};

/// Backward's workspace: [batch, heads, blocks * kStatisticsRows] statistics, then [batch, blocks] first
/// keys.
struct Workspace {
  QueryStatistics* statistics;
  FirstKeys* first_keys;
  std::int64_t blocks;  ///< of kStatisticsRows queries of one sequence; of this size: no padding

  __device__ QueryStatistics* of(int batch, int heads, int head) const {
    return statistics + (static_cast<std::int64_t>(batch) * heads + head) * blocks * kStatisticsRows;
  }
  __device__ FirstKeys* first_keys_of(int batch) const {
    return first_keys + static_cast<std::int64_t>(batch) * blocks;
  }
};

/// The matrices of a backward beside those of its forward.
template <typename T>
struct GradientArguments {
  HeadRows<const T> dout;
  HeadRows<T> dq, dk, dv;
  Workspace workspace;
};

}  // namespace quaver::cuda
