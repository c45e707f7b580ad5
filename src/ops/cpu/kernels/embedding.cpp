#include "ops/cpu/kernels/embedding.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <typename T, typename Table>
[[gnu::flatten]] void gather_rows(Extent extent, const std::int32_t* tokens, const Table* table,
                                  const std::int32_t* positions, const Table* position_table, Rows out,
                                  T* type) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const Table* from = table + tokens[row] * extent.cols;
    const Table* position = positions == nullptr ? nullptr : position_table + positions[row] * extent.cols;
    T* to = row_of(out, row, type);
    for_vectors(extent.cols, [&](std::int64_t col, auto lanes) {
      f32x16 result = load(from + col, lanes);
      if (position != nullptr) result = result + load(position + col, lanes);
      store(result, to + col, lanes);
    });
  }
}

void gather(Real real, Extent extent, const std::int32_t* tokens, Real tables, const void* table,
            const std::int32_t* positions, const void* position_table, Rows out) {
  with_type(real, [&](auto* type) {
    with_type(tables, [&]<typename Table>(Table*) {
      gather_rows(extent, tokens, static_cast<const Table*>(table), positions,
                  static_cast<const Table*>(position_table), out, type);
    });
  });
}

template <typename T>
[[gnu::flatten]] void scatter_add_rows(Extent extent, ConstRows x, const std::int32_t* rows_of, float* table,
                                       std::int64_t stride, const T* type) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* from = row_of(x, row, type);
    float* to = table + rows_of[row] * stride;
    for_vectors(extent.cols, [&](std::int64_t col, auto lanes) {
      store(load(to + col, lanes) + load(from + col, lanes), to + col, lanes);
    });
  }
}

void scatter_add(Real real, Extent extent, ConstRows x, const std::int32_t* rows_of, float* table,
                 std::int64_t stride) {
  with_type(real, [&](auto* type) { scatter_add_rows(extent, x, rows_of, table, stride, type); });
}

}  // namespace

extern const EmbeddingKernels embedding_kernels;
const EmbeddingKernels embedding_kernels = {.gather = gather, .scatter_add = scatter_add};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
