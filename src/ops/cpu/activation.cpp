#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/gated.h"
#include "ops/cpu/kernels/pointwise.h"

namespace quaver {

using namespace cpu;

namespace {

Curve curve_of(Activation kind) {
  return kind == Activation::swiglu ? Curve::silu : Curve::gelu;
}

}  // namespace

void CpuBackend::activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) {
  check_activation(kind, gate, up, h);
  if (kind == Activation::gelu) return gated(threads_, *kernels_.pointwise, curve_of(kind), up, Tensor(), h);
  gated(threads_, *kernels_.pointwise, curve_of(kind), gate, up, h);
}

void CpuBackend::activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                                     const Output& dgate, const Output& dup, const Output& h) {
  check_activation_backward(kind, dh, gate, up, dgate, dup, h, false);
  if (kind == Activation::gelu) {
    return gated_backward(threads_, *kernels_.pointwise, curve_of(kind), dh, up, Tensor(), dup, Output(), h);
  }
  gated_backward(threads_, *kernels_.pointwise, curve_of(kind), dh, gate, up, dgate, dup, h);
}

}  // namespace quaver
