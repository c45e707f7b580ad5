#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

void CpuBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_add(a, b, out);
  const Real real = real_of(a);
  const Pieces pieces = Pieces::of_elements({a.rows(), a.cols()}, {&a, &b, &out});
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels_.pointwise->add(real, piece.extent, part(const_rows(a), piece, real),
                            part(const_rows(b), piece, real), part(rows_of(out), piece, real));
  });
}

}  // namespace quaver
