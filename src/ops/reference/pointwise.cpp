#include <cmath>
#include <numbers>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

using reference::RealMatrix;

/// A function and its derivative at one point.
struct Curve {
  float value, slope;
};

float sigmoid_of(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

Curve silu(float x) {
  const float s = sigmoid_of(x);
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

/// The tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
Curve gelu(float x) {
  const float c = std::sqrt(2.0f / std::numbers::pi_v<float>);
  const float t = std::tanh(c * (x + 0.044715f * x * x * x));
  return {0.5f * x * (1.0f + t),
          0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * c * (1.0f + 3 * 0.044715f * x * x)};
}

Curve activation_curve(Activation kind, float x) {
  return kind == Activation::swiglu ? silu(x) : gelu(x);
}

Curve gate_curve(GateActivation kind, float x) {
  if (kind == GateActivation::silu) return silu(x);
  const float s = sigmoid_of(x), factor = kind == GateActivation::sigmoid2 ? 2.0f : 1.0f;
  return {factor * s, factor * s * (1.0f - s)};
}

template <typename F>
void for_elements(const Tensor& matrix, const F& f) {
  for (std::int64_t m = 0; m < matrix.rows(); ++m) {
    for (std::int64_t n = 0; n < matrix.cols(); ++n) f(m, n);
  }
}

}  // namespace

void ReferenceBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_add(a, b, out);
  const RealMatrix a_of(a), b_of(b), sum(out);
  for_elements(a, [&](auto m, auto n) { sum.set(m, n, a_of(m, n) + b_of(m, n)); });
}

void ReferenceBackend::activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) {
  check_activation(kind, gate, up, h);
  const RealMatrix u(up), g(gate ? gate : up);
  reference::Producer out(h, up.dtype());
  for_elements(up, [&](auto m, auto n) {
    out.store(
        m, n,
        kind == Activation::gelu ? gelu(u(m, n)).value : activation_curve(kind, g(m, n)).value * u(m, n));
  });
}

void ReferenceBackend::activation_backward(Activation kind, const Tensor& dh, const Tensor& gate,
                                           const Tensor& up, const Output& dgate, const Output& dup,
                                           const Output& h) {
  check_activation_backward(kind, dh, gate, up, dgate, dup, h, false);
  const RealMatrix d(dh), u(up), g(gate ? gate : up);
  reference::Producer dgate_out(dgate, up.dtype()), dup_out(dup, up.dtype()), h_out(h, up.dtype());
  for_elements(up, [&](auto m, auto n) {
    const Curve act = activation_curve(kind, g(m, n));
    h_out.store(m, n, kind == Activation::gelu ? act.value : act.value * u(m, n));
    if (kind == Activation::gelu) return dup_out.store(m, n, d(m, n) * act.slope);
    dup_out.store(m, n, d(m, n) * act.value);
    dgate_out.store(m, n, d(m, n) * u(m, n) * act.slope);
  });
}

void ReferenceBackend::gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) {
  check_gate(o, g, y);
  const RealMatrix o_of(o), g_of(g);
  const std::int64_t width = o.cols() / g.cols();  // elements that one gate multiplies
  reference::Producer out(y, o.dtype());
  for_elements(
      o, [&](auto m, auto n) { out.store(m, n, o_of(m, n) * gate_curve(kind, g_of(m, n / width)).value); });
}

void ReferenceBackend::gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                                     const Tensor& d_o, const Output& dg, const Output& y) {
  check_gate_backward(dy, o, g, d_o, dg, y, false);
  const RealMatrix d(dy), o_of(o), g_of(g), d_o_of(d_o);
  reference::Producer y_out(y, o.dtype()), dg_out(dg, o.dtype());
  const std::int64_t width = o.cols() / g.cols();
  for_elements(g, [&](auto m, auto gate) {
    const Curve act = gate_curve(kind, g_of(m, gate));
    float sum = 0;
    for (std::int64_t n = gate * width; n < (gate + 1) * width; ++n) {
      d_o_of.set(m, n, d(m, n) * act.value);
      y_out.store(m, n, o_of(m, n) * act.value);
      sum += d(m, n) * o_of(m, n) * act.slope;
    }
    dg_out.store(m, gate, sum);
  });
}

}  // namespace quaver
