#include "ops/cpu/gated.h"

#include "ops/contracts.h"

namespace quaver::cpu {

void gated(const Threads& threads, const PointwiseKernels& kernels, Curve curve, const Tensor& g,
           const Tensor& u, const Output& out) {
  const Real real = real_of(g);
  const Pieces pieces =
      Pieces::of_elements({g.rows(), g.cols()}, {&g, &u, &out.values, &out.quantized.bytes});
  Production production(out, pieces);
  threads.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels.gated(curve, real, piece.extent, part(const_rows(g), piece, real),
                  part(const_rows(u), piece, real), production.at(piece, real));
  });
  production.finish();
}

void gated_backward(const Threads& threads, const PointwiseKernels& kernels, Curve curve, const Tensor& d,
                    const Tensor& g, const Tensor& u, const Output& dg, const Output& du, const Output& out) {
  const Real real = real_of(d);
  const Pieces pieces =
      Pieces::of_elements({d.rows(), d.cols()}, {&d, &g, &u, &dg.values, &dg.quantized.bytes, &du.values,
                                                 &du.quantized.bytes, &out.values, &out.quantized.bytes});
  Production dg_production(dg, pieces), du_production(du, pieces), again(out, pieces);
  threads.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    kernels.gated_backward(curve, real, piece.extent, part(const_rows(d), piece, real),
                           part(const_rows(g), piece, real), part(const_rows(u), piece, real),
                           dg_production.at(piece, real), du_production.at(piece, real),
                           again.at(piece, real));
  });
  dg_production.finish();
  du_production.finish();
  again.finish();
}

}  // namespace quaver::cpu
