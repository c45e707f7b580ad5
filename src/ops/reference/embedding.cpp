#include "base/check.h"
#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

/// The row of a table that row m of the batch reads.
std::int64_t row_of(const Tensor& indices, std::int64_t m, const Tensor& table) {
  const std::int64_t index = indices.data<std::int32_t>()[m];
  require(index >= 0 && index < table.dim(0), "embedding: index {} at row {} of a table with {} rows", index,
          m, table.dim(0));
  return index;
}

}  // namespace

void ReferenceBackend::embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                                 const Tensor& position_table, const Tensor& out) {
  check_embedding(tokens, table, positions, position_table, out);
  const reference::RealMatrix result(out), token_rows(table), position_rows(position_table);
  for (std::int64_t m = 0; m < out.rows(); ++m) {
    const std::int64_t token = row_of(tokens, m, table);
    const std::int64_t position = position_table ? row_of(positions, m, position_table) : 0;
    for (std::int64_t n = 0; n < out.cols(); ++n) {
      const float row = token_rows(token, n);
      result.set(m, n, position_table ? row + position_rows(position, n) : row);
    }
  }
}

void ReferenceBackend::embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                          const Tensor& dtable, const Tensor& dposition_table) {
  check_embedding_backward(dout, tokens, positions, dtable, dposition_table);
  const reference::RealMatrix d(dout);
  const auto accumulate = [&](const Tensor& indices, const Tensor& table) {
    for (std::int64_t m = 0; m < dout.rows(); ++m) {
      float* row = table.data<float>() + row_of(indices, m, table) * dout.cols();
      for (std::int64_t n = 0; n < dout.cols(); ++n) row[n] += d(m, n);
    }
  };
  accumulate(tokens, dtable);
  if (dposition_table) accumulate(positions, dposition_table);
}

}  // namespace quaver
