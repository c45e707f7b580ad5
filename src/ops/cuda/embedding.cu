#include "ops/cuda/device_backend.h"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;

/// A table of rows and the row that each position of the batch reads.
template <typename Value>
struct Lookup {
  const std::int32_t* indices;
  Value* table;
  std::int64_t limit;
};

/// The rows that are read, or the sum of a token's and a position's. A row without valid index is zeros; the fault is
/// reported.
template <typename Value>
struct LookUp {
  Lookup<Value> tokens, positions;
  std::int64_t cols;
  int* faults;

  template <int N>
  struct Operands {
    Pack<Value, N> token, position;
  };
  template <int N>
  __device__ Operands<N> read(std::int64_t m, std::int64_t n) const {
    return {row_of<N>(tokens, m, n), positions.table ? row_of<N>(positions, m, n) : Pack<Value, N>{}};
  }
  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t, const Operands<N>& read,
                             float (&result)[1][N]) const {
    float position[N];
    widen(read.token, result[0]);
    widen(read.position, position);
    if (!positions.table) return;
#pragma unroll
    for (int i = 0; i < N; ++i) result[0][i] += position[i];
  }

 private:
  template <int N>
  __device__ Pack<Value, N> row_of(const Lookup<Value>& lookup, std::int64_t m, std::int64_t n) const {
    const std::int64_t index = lookup.indices[m];
    if (!check_index(index, lookup.limit, m, kEmbeddingIndex, faults)) return {};
    return Matrix<Value>{lookup.table, cols}.template pack<N>(index, n);
  }
};

/// Rows of the batch that share an index: order[start], ... order[start + count - 1], ascending.
struct Group {
  int index, start, count;
};

/// A stable counting sort of the rows by index, in memory of the backend. Rows are cut into chunks. Where a group lies in
/// `order` and in `groups` depends on timing, its content does not.
struct Sort {
  unsigned long long* used;  ///< groups << 32 | rows that lie in `order`; starts as 0
  int* counts;               ///< [chunk][index] rows of a chunk, later of all chunks before it; start as 0
  int* start;                ///< of the index's group
  int* rank;  ///< of a row among those of its chunk with its index; -1: its index lies outside the table
  int* order;
  Group* groups;
};
constexpr int kChunkRows = 1024;
constexpr int kNoIndex = -1;

/// One block per chunk. Every row is compared with all earlier ones of its chunk.
__global__ void __launch_bounds__(kThreads)
    count_rows(Lookup<float> lookup, std::int64_t rows, Sort sort, int* faults) {
  __shared__ __align__(16) int indices[kChunkRows];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kChunkRows;
  for (int r = static_cast<int>(threadIdx.x); r < kChunkRows; r += kThreads) {
    indices[r] = kNoIndex;
    if (first + r >= rows) continue;
    const int index = lookup.indices[first + r];
    if (check_index(index, lookup.limit, first + r, kEmbeddingIndex, faults)) indices[r] = index;
  }
  __syncthreads();
  for (int r = static_cast<int>(threadIdx.x); r < kChunkRows && first + r < rows; r += kThreads) {
    const int index = indices[r];
    int earlier = 0;
    for (int j = 0; j < r; j += 4) {
      const auto others = *reinterpret_cast<const Pack<int, 4>*>(indices + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) earlier += j + i < r && others.at[i] == index;
    }
    sort.rank[first + r] = index == kNoIndex ? -1 : earlier;
    if (index != kNoIndex) atomicAdd(sort.counts + blockIdx.x * lookup.limit + index, 1);
  }
}

/// One thread per index: its rows in all chunks before each, and a place for its group.
__global__ void __launch_bounds__(kThreads) place_groups(std::int64_t limit, std::int64_t chunks, Sort sort) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kAhead = 8;
  int count = 0;
  for (std::int64_t chunk = 0; index < limit && chunk < chunks; chunk += kAhead) {
    int counts[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      counts[i] = chunk + i < chunks ? sort.counts[(chunk + i) * limit + index] : 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (chunk + i < chunks) sort.counts[(chunk + i) * limit + index] = count;
      count += counts[i];
    }
  }
  const unsigned long long own =
      static_cast<unsigned long long>(count > 0) << 32 | static_cast<unsigned>(count);
  unsigned long long up_to = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned long long before = __shfl_up_sync(kAllLanes, up_to, distance);
    if (lane >= distance) up_to += before;
  }
  unsigned long long begin = 0;
  if (lane == 31) begin = atomicAdd(sort.used, up_to);
  begin = __shfl_sync(kAllLanes, begin, 31) + up_to - own;
  if (count == 0) return;
  const int start = static_cast<int>(begin & 0xFFFFFFFFull);
  sort.start[index] = start;
  sort.groups[begin >> 32] = {static_cast<int>(index), start, count};
}

/// One thread per row.
__global__ void __launch_bounds__(kThreads) order_rows(Lookup<float> lookup, std::int64_t rows, Sort sort) {
  const std::int64_t m = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (m >= rows || sort.rank[m] < 0) return;
  const std::int64_t index = lookup.indices[m];
  sort.order[sort.start[index] + sort.counts[m / kChunkRows * lookup.limit + index] + sort.rank[m]] =
      static_cast<int>(m);
}

/// table[index] += dout[m], m ascending. One thread per group and N columns.
template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    add_groups(Lookup<float> lookup, Sort sort, Matrix<T> dout, std::int64_t cols) {
  const std::int64_t per_row = cols / N,
                     thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t number = quotient(thread, per_row), n = (thread - number * per_row) * N;
  if (number >= static_cast<std::int64_t>(*sort.used >> 32)) return;
  const Group group = sort.groups[number];
  const int* const order = sort.order + group.start;
  const Matrix<float> table{lookup.table, cols};
  float sums[N];
  table.load(group.index, n, sums);
  constexpr int kAhead = 8;  // rows on their way at once
  for (int first = 0; first < group.count; first += kAhead) {
    Pack<T, N> packs[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < group.count) packs[i] = dout.template pack<N>(order[first + i], n);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= group.count) break;
      float values[N];
      widen(packs[i], values);
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] += values[j];
    }
  }
  table.store(group.index, n, sums);
}

template <typename Value>
Lookup<Value> lookup_of(const Tensor& indices, const Tensor& table) {
  if (!table) return {};
  return {indices.data<std::int32_t>(), table.data<Value>(), table.dim(0)};
}

template <typename T>
void accumulate(const Tensor& indices, const Tensor& table, const Tensor& dout, int* faults, Backend& backend,
                Stream stream) {
  const char* const name = "embedding_backward";
  const Lookup<float> lookup = lookup_of<float>(indices, table);
  const std::int64_t rows = dout.rows(), cols = dout.cols(), limit = lookup.limit;
  if (rows == 0 || cols == 0 || limit == 0) return;
  const std::int64_t chunks = blocks_for(rows, kChunkRows), most_groups = std::min(rows, limit);
  const Tensor counts = backend.allocate(DType::i32, {2 + chunks * limit});
  const Tensor others = backend.allocate(DType::i32, {limit + 2 * rows + 3 * most_groups});
  backend.fill(counts, 0);
  int *const zeros = counts.data<int>(), *const at = others.data<int>();
  const Sort sort{
      reinterpret_cast<unsigned long long*>(zeros),   zeros + 2, at, at + limit, at + limit + rows,
      reinterpret_cast<Group*>(at + limit + 2 * rows)};
  launch(name, count_rows, {chunks, kThreads}, stream, lookup, rows, sort, faults);
  launch(name, place_groups, {blocks_for(limit, kThreads), kThreads}, stream, limit, chunks, sort);
  launch(name, order_rows, {blocks_for(rows, kThreads), kThreads}, stream, lookup, rows, sort);
  const bool pack = all_pack({dout, table});
  launch(name, pack ? add_groups<kPack, T> : add_groups<1, T>,
         {blocks_for(most_groups * cols / (pack ? kPack : 1), kThreads), kThreads}, stream, lookup, sort,
         matrix_of<T>(dout), cols);
}

}  // namespace

void DeviceBackend::embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                              const Tensor& position_table, const Tensor& out) {
  check_embedding(tokens, table, positions, position_table, out);
  const bool pack = all_pack({table, position_table});
  with_real(out.dtype(), [&]<typename T>(T) {
    with_real(table.dtype(), [&]<typename Value>(Value) {
      produce<T, 1>(
          "embedding",
          LookUp<Value>{lookup_of<Value>(tokens, table), lookup_of<Value>(positions, position_table),
                        out.cols(), faults_.data<int>()},
          {Output{out, {}, {}}}, out.rows(), out.cols(), pack, stream());
    });
  });
}

void DeviceBackend::embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                       const Tensor& dtable, const Tensor& dposition_table) {
  check_embedding_backward(dout, tokens, positions, dtable, dposition_table);
  with_real(dout.dtype(), [&]<typename T>(T) {
    accumulate<T>(tokens, dtable, dout, faults_.data<int>(), *this, stream());
    if (dposition_table) {
      accumulate<T>(positions, dposition_table, dout, faults_.data<int>(), *this, stream());
    }
  });
}

}  // namespace quaver::cuda
