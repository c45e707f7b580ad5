#include "ops/cuda/device_backend.h"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 128;

/// A table of rows and the row that each position of the batch reads.
struct Lookup {
  const std::int32_t* indices;
  float* table;
  std::int64_t limit;
};

/// A row without valid index is left as zeros; the fault is reported.
template <typename T>
__global__ void look_up(Lookup tokens, Lookup positions, Matrix<T> out, std::int64_t cols, int* faults) {
  const std::int64_t m = blockIdx.x;
  const auto row_of = [&](const Lookup& lookup) -> const float* {
    const std::int64_t index = lookup.indices[m];
    return check_index(index, lookup.limit, m, kEmbeddingIndex, faults) ? lookup.table + index * cols
                                                                        : nullptr;
  };
  const float* const token = row_of(tokens);
  const float* const position = positions.table ? row_of(positions) : nullptr;
  for (std::int64_t n = threadIdx.x; n < cols; n += kThreads) {
    const float value = token ? token[n] : 0.0f;
    *out.address(m, n) = round_as<T>(position ? value + position[n] : value);
  }
}

/// Rows of the batch by the index they share. `first[m]`: the first row with m's index; `rank[m]`: how many
/// earlier rows have it; for first rows, their group is order[start[m]], ... `count[m]` rows, ascending.
struct Groups {
  int *first, *rank, *start, *count, *order, *used;
};
constexpr int kGroupArrays = 5;  // and one number

/// One warp per row compares its index with all others: rows^2 / 32 steps, which for the 10^4 to 10^5 rows of
/// a micro-batch is less than a sort's passes. Rows with an index outside the table have rank -1. Where a
/// group lies in `order` depends on timing, its content does not.
__global__ void find_groups(Lookup lookup, std::int64_t rows, Groups groups, int* faults) {
  const std::int64_t m = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (m >= rows) return;
  const int index = lookup.indices[m];
  int earlier = 0, all = 0, first = INT_MAX;
  for (std::int64_t other = lane; other < rows; other += 32) {
    if (lookup.indices[other] != index) continue;
    ++all;
    if (other < m) ++earlier;
    first = min(first, static_cast<int>(other));
  }
  earlier = warp_reduce(earlier, Add{});
  all = warp_reduce(all, Add{});
  first = warp_reduce(first, [](int a, int b) { return min(a, b); });
  if (lane != 0) return;
  const bool valid = check_index(index, lookup.limit, m, kEmbeddingIndex, faults);
  groups.first[m] = first;
  groups.rank[m] = valid ? earlier : -1;
  groups.count[m] = all;
  if (valid && earlier == 0) groups.start[m] = atomicAdd(groups.used, all);
}

__global__ void order_groups(std::int64_t rows, Groups groups) {
  const std::int64_t m = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (m < rows && groups.rank[m] >= 0) {
    groups.order[groups.start[groups.first[m]] + groups.rank[m]] = static_cast<int>(m);
  }
}

/// table[index] += dout[m], m ascending, one block per group and stretch of columns.
template <typename T>
__global__ void add_groups(Lookup lookup, Groups groups, Matrix<T> dout, std::int64_t cols) {
  const std::int64_t m = blockIdx.x;
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (groups.rank[m] != 0 || n >= cols) return;
  float* const to = lookup.table + lookup.indices[m] * cols + n;
  const int* const order = groups.order + groups.start[m];
  const int count = groups.count[m];
  float sum = *to;
#pragma unroll 4
  for (int i = 0; i < count; ++i) sum += dout(order[i], n);
  *to = sum;
}

Lookup lookup_of(const Tensor& indices, const Tensor& table) {
  if (!table) return {};
  return {indices.data<std::int32_t>(), table.data<float>(), table.dim(0)};
}

template <typename T>
void accumulate(const Lookup& lookup, const Tensor& dout, int* faults, Backend& backend, Stream stream) {
  const std::int64_t rows = dout.rows(), cols = dout.cols();
  if (rows == 0) return;
  const Tensor memory = backend.allocate(DType::i32, {kGroupArrays * rows + 1});
  auto* const at = memory.data<int>();
  const Groups groups{at, at + rows, at + 2 * rows, at + 3 * rows, at + 4 * rows, at + 5 * rows};
  backend.fill(memory.slice(kGroupArrays * rows, 1), 0);
  launch("embedding_backward", find_groups, {blocks_for(rows, kThreads / 32), kThreads}, stream, lookup, rows,
         groups, faults);
  launch("embedding_backward", order_groups, {blocks_for(rows, kThreads), kThreads}, stream, rows, groups);
  launch("embedding_backward", add_groups<T>,
         {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(blocks_for(cols, kThreads))), kThreads},
         stream, lookup, groups, matrix_of<T>(dout), cols);
}

}  // namespace

void DeviceBackend::embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                              const Tensor& position_table, const Tensor& out) {
  check_embedding(tokens, table, positions, position_table, out);
  with_real(out.dtype(), [&]<typename T>(T) {
    launch("embedding", look_up<T>, {out.rows(), kThreads}, stream(), lookup_of(tokens, table),
           lookup_of(positions, position_table), matrix_of<T>(out), out.cols(), faults_.data<int>());
  });
}

void DeviceBackend::embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                       const Tensor& dtable, const Tensor& dposition_table) {
  check_embedding_backward(dout, tokens, positions, dtable, dposition_table);
  with_real(dout.dtype(), [&]<typename T>(T) {
    accumulate<T>(lookup_of(tokens, dtable), dout, faults_.data<int>(), *this, stream());
    if (dposition_table) {
      accumulate<T>(lookup_of(positions, dposition_table), dout, faults_.data<int>(), *this, stream());
    }
  });
}

}  // namespace quaver::cuda
