/// Activations, the attention gate and the transforms of heads against formulas in double, and their
/// gradients against differences of those.
#include <numbers>

#include "support/backend_test.h"

namespace quaver::testing {
namespace {

constexpr std::int64_t kRows = 3;

/// A dozen FP32 roundings and an exponential; slopes subtract numbers near 1.
constexpr double kBound = 4e-6;

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
double silu(double x) {
  return x * sigmoid(x);
}
double gelu(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
}

struct ActivationInputs {
  Activation kind;
  Doubles gate, up;
  Doubles h() const {
    Doubles result;
    for (std::size_t i = 0; i < up.size(); ++i) {
      if (kind == Activation::gelu) result.push_back(gelu(up[i]));
      if (kind == Activation::geglu) result.push_back(gelu(gate[i]) * up[i]);
      if (kind == Activation::swiglu) result.push_back(silu(gate[i]) * up[i]);
    }
    return result;
  }
};

class PointwiseOperation : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, PointwiseOperation, every_backend(), backend_name);

TEST_P(PointwiseOperation, ActivationsFollowTheirFormulasAndGradients) {
  for (std::int64_t cols : {1, 17, 33}) {
    for (Activation kind : {Activation::swiglu, Activation::geglu, Activation::gelu}) {
      const bool gated = kind != Activation::gelu;
      ActivationInputs in{kind, normal_values(kRows * cols, 1, 0, 3), normal_values(kRows * cols, 2, 0, 2)};
      const Doubles dh = normal_values(kRows * cols, 3);
      const Tensor gate = gated ? matrix(in.gate, kRows, cols) : Tensor(), up = matrix(in.up, kRows, cols);
      const Output h{slice(kRows, cols), {}, {}}, dup{slice(kRows, cols), {}, {}};
      const Output dgate{gated ? slice(kRows, cols) : Tensor(), {}, {}};

      backend->activation(kind, gate, up, h);
      expect_close(floats(h.values), in.h(), kBound, "h");

      backend->activation_backward(kind, matrix(dh, kRows, cols), gate, up, dgate, dup, {});
      const auto loss = [&] { return dot(in.h(), dh); };
      expect_close(floats(dup.values), numeric_gradient(in.up, loss), kBound, "dup");
      if (gated) expect_close(floats(dgate.values), numeric_gradient(in.gate, loss), kBound, "dgate");
    }
  }
}

struct GateInputs {
  GateActivation kind;
  std::size_t width;  ///< elements that one gate multiplies
  Doubles o, g;
  double act(double x) const {
    if (kind == GateActivation::silu) return silu(x);
    return (kind == GateActivation::sigmoid2 ? 2 : 1) * sigmoid(x);
  }
  Doubles y() const {
    Doubles result;
    for (std::size_t i = 0; i < o.size(); ++i) result.push_back(o[i] * act(g[i / width]));
    return result;
  }
};

TEST_P(PointwiseOperation, GatesFollowTheirFormulasAndGradients) {
  constexpr std::int64_t kGates = 5;
  for (std::int64_t width : {1, 7}) {
    for (auto kind : {GateActivation::sigmoid, GateActivation::sigmoid2, GateActivation::silu}) {
      const std::int64_t cols = kGates * width;
      GateInputs in{kind, static_cast<std::size_t>(width), normal_values(kRows * cols, 1),
                    normal_values(kRows * kGates, 2, 0, 3)};
      const Doubles dy = normal_values(kRows * cols, 3);
      const Tensor o = matrix(in.o, kRows, cols), g = matrix(in.g, kRows, kGates);
      const Output y{slice(kRows, cols), {}, {}};
      const Tensor d_o = slice(kRows, cols), dg = slice(kRows, kGates);

      backend->gate(kind, o, g, y);
      expect_close(floats(y.values), in.y(), kBound, "y");

      backend->gate_backward(kind, matrix(dy, kRows, cols), o, g, d_o, {dg, {}, {}}, {});
      const auto loss = [&] { return dot(in.y(), dy); };
      expect_close(floats(d_o), numeric_gradient(in.o, loss), kBound, "do");
      expect_close(floats(dg), numeric_gradient(in.g, loss), kBound, "dg");
    }
  }
}

/// Heads of 5 elements, 4 of them turned, by angles of 3 positions.
struct HeadInputs {
  static constexpr std::int64_t kHeads = 2, kSize = 5, kPairs = 2, kPositions = 3;
  static constexpr float kEpsilon = 1e-2f;
  QkNorm norm;
  Doubles x = normal_values(kRows * kHeads * kSize, 1), gain = normal_values(kSize, 2, 1, 0.3f);
  Doubles cosine, sine;
  std::vector<std::int32_t> positions{2, 0, 1};

  explicit HeadInputs(QkNorm how) : norm(how) {
    for (const double angle : normal_values(kPositions * kPairs, 3, 0, 2)) {
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  Doubles turned(Doubles head, std::int32_t position) const {
    for (std::int64_t j = 0; j < kPairs; ++j) {
      const double c = cosine[position * kPairs + j], s = sine[position * kPairs + j];
      const double a = head[j], b = head[j + kPairs];
      head[j] = a * c - b * s;
      head[j + kPairs] = b * c + a * s;
    }
    return head;
  }
  Doubles normed(Doubles head) const {
    const double rstd = 1 / std::sqrt(dot(head, head) / kSize + static_cast<double>(kEpsilon));
    for (std::int64_t d = 0; d < kSize; ++d) head[d] *= rstd * gain[d];
    return head;
  }
  Doubles out() const {
    Doubles result;
    for (std::int64_t m = 0; m < kRows; ++m) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        const auto begin = x.begin() + (m * kHeads + head) * kSize;
        Doubles h(begin, begin + kSize);
        if (norm == QkNorm::pre_rope) h = normed(h);
        h = turned(h, positions[m]);
        if (norm == QkNorm::post_rope) h = normed(h);
        result.insert(result.end(), h.begin(), h.end());
      }
    }
    return result;
  }
};

TEST_P(PointwiseOperation, HeadTransformsFollowTheirFormulasAndGradients) {
  constexpr std::int64_t kCols = HeadInputs::kHeads * HeadInputs::kSize;
  for (QkNorm norm : {QkNorm::none, QkNorm::pre_rope, QkNorm::post_rope}) {
    const bool has_norm = norm != QkNorm::none;
    HeadInputs in(norm);
    const Doubles dout = normal_values(kRows * kCols, 4);
    const Shape tables{HeadInputs::kPositions, HeadInputs::kPairs};
    const HeadTransform transform{HeadInputs::kHeads,
                                  HeadInputs::kSize,
                                  norm,
                                  HeadInputs::kEpsilon,
                                  has_norm ? vector(in.gain) : Tensor(),
                                  vector(in.cosine).reshape(tables),
                                  vector(in.sine).reshape(tables)};
    const Tensor x = matrix(in.x, kRows, kCols), out = slice(kRows, kCols), dx = slice(kRows, kCols);
    const Tensor positions = upload(*backend, in.positions, {kRows});
    const Tensor dgain = has_norm ? vector(Doubles(HeadInputs::kSize, 0.0)) : Tensor();

    backend->transform_heads(transform, x, positions, out);
    expect_close(floats(out), in.out(), kBound, "out");

    backend->transform_heads_backward(transform, matrix(dout, kRows, kCols), has_norm ? x : Tensor(),
                                      positions, {dx, {}, {}}, dgain);
    const auto loss = [&] { return dot(in.out(), dout); };
    expect_close(floats(dx), numeric_gradient(in.x, loss), kBound, "dx");
    if (has_norm) expect_close(floats(dgain), numeric_gradient(in.gain, loss), kBound, "dgain");
  }
}

}  // namespace
}  // namespace quaver::testing
