#include "ops/cpu/kernels/embedding.h"
#include "base/check.h"
#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

namespace {

constexpr std::int64_t kColumnBlock = 128;

void check_indices(const char* name, const Tensor& indices, const Tensor& table) {
  const auto* data = indices.data<std::int32_t>();
  for (std::int64_t m = 0; m < indices.elements(); ++m) {
    require(data[m] >= 0 && data[m] < table.dim(0), "embedding: {}[{}] is {}, but the table has {} rows",
            name, m, data[m], table.dim(0));
  }
}

/// Every work item owns some columns of the table, so that a table row is summed by one thread in ascending
/// m.
void scatter_add(const Threads& threads, const EmbeddingKernels& kernels, const Tensor& x,
                 const Tensor& indices, const Tensor& table) {
  const Real real = real_of(x);
  threads.for_blocks(x.cols(), kColumnBlock, [&](std::int64_t begin, std::int64_t end) {
    const Piece piece{0, 0, begin, {x.rows(), end - begin}};
    kernels.scatter_add(real, piece.extent, part(const_rows(x), piece, real), indices.data<std::int32_t>(),
                        table.data<float>() + begin, x.cols());
  });
}

}  // namespace

void CpuBackend::embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                           const Tensor& position_table, const Tensor& out) {
  check_embedding(tokens, table, positions, position_table, out);
  check_indices("tokens", tokens, table);
  const bool adds_positions = position_table.defined();
  if (adds_positions) check_indices("positions", positions, position_table);
  const Real real = real_of(out);
  const Pieces pieces = Pieces::of_rows({out.rows(), out.cols()});
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels_.embedding->gather(
        real, piece.extent, tokens.data<std::int32_t>() + piece.row, real_of(table), table.raw(),
        adds_positions ? positions.data<std::int32_t>() + piece.row : nullptr,
        adds_positions ? position_table.raw() : nullptr, part(rows_of(out), piece, real));
  });
}

void CpuBackend::embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                    const Tensor& dtable, const Tensor& dposition_table) {
  check_embedding_backward(dout, tokens, positions, dtable, dposition_table);
  check_indices("tokens", tokens, dtable);
  scatter_add(threads_, *kernels_.embedding, dout, tokens, dtable);
  if (!dposition_table.defined()) return;
  check_indices("positions", positions, dposition_table);
  scatter_add(threads_, *kernels_.embedding, dout, positions, dposition_table);
}

}  // namespace quaver
