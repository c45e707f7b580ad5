/// Which rows a block of threads works on, and which keys a query sees.
#pragma once

#include <climits>
#include <cstdint>

#include "ops/cuda/attention_tile.cuh"

namespace quaver::cuda {

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
struct QueryStatistics {
  float lse;    ///< in units of log2
  float delta;  ///< the sum of dout * out; 0 of a query that sees no key
  KeyRange keys;
};

/// The statistics of kRows queries, apart, so that neighbours are read at once.
template <int kRows>
struct alignas(16) StatisticsBlock {
  float lse[kRows], delta[kRows];
  int first[kRows];  ///< key that is seen; INT_MAX past the last query

  /// Of row `row`, whose last key is `last`.
  __device__ QueryStatistics of(int row, int last) const {
    return {lse[row], delta[row], {first[row], last}};
  }
};

/// The smallest and the largest first_key of kStatisticsRows queries (rows past the end: as if INT_MAX in
/// `largest` alone).
constexpr int kStatisticsRows = 64;
struct alignas(8) FirstKeys {
  int smallest, largest;
};

/// Backward's workspace: [batch, heads, blocks] statistics, [batch, blocks] first keys, then, if parts > 1, sums of
/// the parts into which the queries of dk and dv are dealt: [parts, dk and dv, batch * key_len, kv_heads * head_dim].
struct Workspace {
  StatisticsBlock<kStatisticsRows>* statistics;
  FirstKeys* first_keys;
  std::int64_t
      blocks;  ///< of kStatisticsRows queries of one sequence, an even number; of this size: no padding
  float* key_sums;
  std::int64_t parts;

  /// The block that begins with query `query`.
  __device__ StatisticsBlock<kStatisticsRows>* block(int batch, int heads, int head, int query) const {
    return statistics + (static_cast<std::int64_t>(batch) * heads + head) * blocks + query / kStatisticsRows;
  }
  __device__ QueryStatistics of(int batch, int heads, int head, int query, int last_key) const {
    return block(batch, heads, head, query)->of(query % kStatisticsRows, last_key);
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
