#include "ops/cpu/kernels/cast.h"

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

void CpuBackend::cast(const Tensor& x, const Output& output) {
  check_cast(x, output);
  const Pieces pieces =
      Pieces::of_elements({x.rows(), x.cols()}, {&x, &output.values, &output.quantized.bytes});
  Production production(output, pieces);
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels_.cast->cast(real_of(x), piece.extent, part(const_rows(x), piece, real_of(x)),
                        production.at(piece, real_of(x)));
  });
  production.finish();
}

}  // namespace quaver
