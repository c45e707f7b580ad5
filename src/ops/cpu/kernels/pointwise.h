/// Elementwise operations and products with an activation.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

/// The functions that gates and activations apply. sigmoid2 = 2 sigmoid; gelu in its tanh form.
enum class Curve { sigmoid, sigmoid2, silu, gelu };

struct PointwiseKernels {
  void (*add)(Real real, Extent extent, ConstRows a, ConstRows b, Rows out);
  /// out[m][n] = x[m][n] * factors[n].
  void (*scale_columns)(Real real, Extent extent, ConstRows x, const float* factors, Rows out);
  /// f32 to bf16 and back, over `count` elements.
  void (*convert)(Real from, const void* source, Real to, void* destination, std::int64_t count);
  /// out = curve(g) * u; u.data null: out = curve(g).
  void (*gated)(Curve curve, Real real, Extent extent, ConstRows g, ConstRows u, const ProducerRows& out);
  /// dg = d * u * curve'(g), du = d * curve(g); u.data null: dg = d * curve'(g) and no du. `again`, which may be absent: what
  /// `gated` stores.
  void (*gated_backward)(Curve curve, Real real, Extent extent, ConstRows d, ConstRows g, ConstRows u,
                         const ProducerRows& dg, const ProducerRows& du, const ProducerRows& again);
  /// out = curve(g) * u where one element of g serves `group` columns of u. The extent is that of g.
  void (*grouped)(Curve curve, Real real, Extent extent, std::int64_t group, ConstRows g, ConstRows u,
                  const ProducerRows& out);
  /// du = d * curve(g); dg = curve'(g) * sum of d * u over the group.
  void (*grouped_backward)(Curve curve, Real real, Extent extent, std::int64_t group, ConstRows d,
                           ConstRows g, ConstRows u, const ProducerRows& dg, Rows du);
};

}  // namespace quaver::cpu
