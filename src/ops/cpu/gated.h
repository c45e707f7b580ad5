/// out = curve(g) * u, which activations and attention gates share: the kernels of kernels/pointwise.h over
/// whole tensors.
#pragma once

#include "base/threads.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/work.h"

namespace quaver::cpu {

/// u may be absent.
void gated(const Threads& threads, const PointwiseKernels& kernels, Curve curve, const Tensor& g,
           const Tensor& u, const Output& out);
/// `out`, which may be absent: what `gated` writes, from what a core's cache holds.
void gated_backward(const Threads& threads, const PointwiseKernels& kernels, Curve curve, const Tensor& d,
                    const Tensor& g, const Tensor& u, const Output& dg, const Output& du, const Output& out);

}  // namespace quaver::cpu
