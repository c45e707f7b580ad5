#include "base/check.h"
#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/gated.h"

namespace quaver {

using namespace cpu;

namespace {

Curve curve_of(GateActivation kind) {
  switch (kind) {
    case GateActivation::sigmoid:
      return Curve::sigmoid;
    case GateActivation::sigmoid2:
      return Curve::sigmoid2;
    case GateActivation::silu:
      return Curve::silu;
  }
  fail(ErrorKind::usage, "gate: activation {} does not exist", static_cast<int>(kind));
}

/// The piece of g that belongs to whole rows of o.
Piece gates_of(const Piece& piece, const Tensor& g) {
  return {piece.index, piece.row, 0, {piece.extent.rows, g.cols()}};
}

}  // namespace

void CpuBackend::gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) {
  check_gate(o, g, y);
  if (g.cols() == o.cols()) return gated(threads_, *kernels_.pointwise, curve_of(kind), g, o, y);
  const Real real = real_of(o);
  const Pieces pieces = Pieces::of_rows({o.rows(), o.cols()});
  Production production(y, pieces);
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    const Piece gates = gates_of(piece, g);
    kernels_.pointwise->grouped(curve_of(kind), real, gates.extent, o.cols() / g.cols(),
                                part(const_rows(g), gates, real), part(const_rows(o), piece, real),
                                production.at(piece, real));
  });
  production.finish();
}

void CpuBackend::gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                               const Tensor& d_o, const Output& dg, const Output& y) {
  check_gate_backward(dy, o, g, d_o, dg, y, false);
  if (g.cols() == o.cols()) {
    return gated_backward(threads_, *kernels_.pointwise, curve_of(kind), dy, g, o, dg, Output{d_o, {}, {}},
                          y);
  }
  const Real real = real_of(o);
  const Pieces pieces = Pieces::of_rows({o.rows(), o.cols()});
  Production dg_production(dg, pieces), again(y, pieces);
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    const Piece gates = gates_of(piece, g);
    kernels_.pointwise->grouped_backward(curve_of(kind), real, gates.extent, o.cols() / g.cols(),
                                         part(const_rows(dy), piece, real), part(const_rows(g), gates, real),
                                         part(const_rows(o), piece, real), dg_production.at(gates, real),
                                         part(rows_of(d_o), piece, real));
    if (is_wanted(y))
      kernels_.pointwise->grouped(curve_of(kind), real, gates.extent, o.cols() / g.cols(),
                                  part(const_rows(g), gates, real), part(const_rows(o), piece, real),
                                  again.at(piece, real));
  });
  dg_production.finish();
  again.finish();
}

}  // namespace quaver
