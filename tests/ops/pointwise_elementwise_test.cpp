#include <numbers>

#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

// A handful of FP32 roundings, and an exponential within 2 ulp, on operands of at most about 10. Slopes
// subtract numbers near 1 from 1 (the reference's gelu: 1 - t * t, times up to 10), so that their errors are
// absolute.
constexpr Bound kCurveBound{4e-6f, 2e-6f};
constexpr Bound kSlopeBound{1e-5f, 2e-5f};

class PointwiseElementwise : public ::testing::TestWithParam<MatrixCase> {};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseElementwise, ::testing::ValuesIn(matrix_cases()));

TEST_P(PointwiseElementwise, AddEqualsTheReference) {
  const Tensor a = special_matrix(GetParam(), 1), b = special_matrix(GetParam(), 2);
  expect_equals_reference([&](Backend& backend) {
    const Tensor out = empty_matrix(GetParam());
    backend.add(a, b, out);
    return std::vector{out};
  });
}

TEST_P(PointwiseElementwise, AddInPlace) {
  const Tensor a = random_matrix(GetParam(), 1), b = random_matrix(GetParam(), 2);
  expect_equals_reference([&](Backend& backend) {
    const Tensor left = copy_of(a), right = copy_of(b);
    backend.add(left, b, left);
    backend.add(a, right, right);
    return std::vector{left, right};
  });
}

TEST_P(PointwiseElementwise, ActivationIsNearTheReference) {
  const Tensor gate = random_matrix(GetParam(), 3, 3.0f), up = random_matrix(GetParam(), 4);
  for (Activation kind : {Activation::swiglu, Activation::geglu, Activation::gelu}) {
    const Tensor gate_or_none = kind == Activation::gelu ? Tensor() : gate;
    expect_near_reference(
        [&](Backend& backend) {
          const Output h{empty_matrix(GetParam()), {}, {}};
          backend.activation(kind, gate_or_none, up, h);
          return std::vector{h.values};
        },
        kCurveBound);
  }
}

TEST_P(PointwiseElementwise, ActivationBackwardIsNearTheReference) {
  const Tensor gate = random_matrix(GetParam(), 3, 3.0f), up = random_matrix(GetParam(), 4);
  const Tensor dh = random_matrix(GetParam(), 5);
  for (Activation kind : {Activation::swiglu, Activation::geglu, Activation::gelu}) {
    const bool gated = kind != Activation::gelu;
    expect_near_reference(
        [&](Backend& backend) {
          const Output dgate{gated ? empty_matrix(GetParam()) : Tensor(), {}, {}};
          const Output dup{empty_matrix(GetParam()), {}, {}};
          backend.activation_backward(kind, dh, gated ? gate : Tensor(), up, dgate, dup, {});
          return gated ? std::vector{dup.values, dgate.values} : std::vector{dup.values};
        },
        kSlopeBound);
  }
}

TEST_P(PointwiseElementwise, ActivationCastsItsResult) {
  const Tensor gate = special_matrix(GetParam(), 3), up = special_matrix(GetParam(), 4);
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.activation(Activation::swiglu, gate, up, output);
  });
}

TEST_P(PointwiseElementwise, ActivationBackwardCastsBothResults) {
  const Tensor gate = random_matrix(GetParam(), 3), up = random_matrix(GetParam(), 4);
  const Tensor dh = special_matrix(GetParam(), 5);
  const Output other{empty_matrix(GetParam()), {}, {}};
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.activation_backward(Activation::geglu, dh, gate, up, output, other, {});
  });
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.activation_backward(Activation::swiglu, dh, gate, up, other, output, {});
  });
}

class PointwiseGate : public ::testing::TestWithParam<MatrixCase> {
 protected:
  // Every column of g serves `width` columns of o.
  static MatrixCase wide(std::int64_t width) {
    MatrixCase c = GetParam();
    c.cols *= width;
    return c;
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseGate, ::testing::ValuesIn([] {
                           std::vector<MatrixCase> cases = matrix_cases();
                           std::erase_if(cases, [](const MatrixCase& c) { return c.rows * c.cols > 20000; });
                           return cases;
                         }()));
INSTANTIATE_TEST_SUITE_P(SlowSizes, PointwiseGate, ::testing::ValuesIn([] {
                           std::vector<MatrixCase> cases = matrix_cases();
                           std::erase_if(cases, [](const MatrixCase& c) {
                             return c.rows * c.cols <= 20000 || c.cols > 257;
                           });
                           return cases;
                         }()));

TEST_P(PointwiseGate, ForwardIsNearTheReference) {
  for (std::int64_t width : {1, 7, 16}) {
    const Tensor o = random_matrix(wide(width), 1), g = random_matrix(GetParam(), 2, 3.0f);
    for (auto kind : {GateActivation::sigmoid, GateActivation::sigmoid2, GateActivation::silu}) {
      expect_near_reference(
          [&](Backend& backend) {
            const Output y{empty_matrix(wide(width)), {}, {}};
            backend.gate(kind, o, g, y);
            return std::vector{y.values};
          },
          kCurveBound);
    }
  }
}

TEST_P(PointwiseGate, BackwardIsNearTheReference) {
  for (std::int64_t width : {1, 7, 16}) {
    const Tensor o = random_matrix(wide(width), 1), g = random_matrix(GetParam(), 2, 3.0f);
    const Tensor dy = random_matrix(wide(width), 3);
    for (auto kind : {GateActivation::sigmoid, GateActivation::sigmoid2, GateActivation::silu}) {
      // The gradient of a head's gate is a sum of `width` products of about 1: its error is absolute, not
      // relative.
      const Bound bound{4e-6f, 4e-6f * static_cast<float>(width)};
      expect_near_reference(
          [&](Backend& backend) {
            const Tensor d_o = empty_matrix(wide(width)), dg = empty_matrix(GetParam());
            backend.gate_backward(kind, dy, o, g, d_o, {dg, {}, {}}, {});
            return std::vector{d_o, dg};
          },
          bound);
    }
  }
}

TEST_P(PointwiseGate, ForwardCastsItsResult) {
  for (std::int64_t width : {1, 7}) {
    const Tensor o = special_matrix(wide(width), 1), g = random_matrix(GetParam(), 2);
    expect_fused_cast(wide(width), wide(width).cols, [&](Backend& backend, const Output& output) {
      backend.gate(GateActivation::sigmoid, o, g, output);
    });
  }
}

TEST_P(PointwiseGate, BackwardCastsTheGatesGradient) {
  for (std::int64_t width : {1, 7}) {
    const Tensor o = special_matrix(wide(width), 1), g = random_matrix(GetParam(), 2),
                 dy = random_matrix(wide(width), 3);
    expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
      const Tensor d_o = empty_matrix(wide(width));
      backend.gate_backward(GateActivation::sigmoid, dy, o, g, d_o, output, {});
      finish(backend);
    });
  }
}

/// The parts of a packed gradient, each by its producer, leave what a cast of the whole matrix does.
TEST(PointwiseParts, AreCastTogetherAsOneMatrix) {
  for (const auto& [rows, heads, head_dim] :
       {std::tuple{5, 1, 6}, std::tuple{128, 2, 16}, std::tuple{37, 3, 8}}) {
    const std::int64_t q = 2 * heads * head_dim, qkv = q + 2 * heads * head_dim, all = qkv + q;
    for (const DType type : {DType::f32, DType::bf16}) {
      const MatrixCase whole{rows, all, type, false}, turned{rows, qkv, type, false}, o{rows, q, type, false};
      HeadTransform transform;
      transform.heads = 3 * heads;
      transform.untouched = heads;
      transform.head_dim = head_dim;
      transform.cosine = random_vector(4 * head_dim / 2, 5).reshape({4, head_dim / 2});
      transform.sine = random_vector(4 * head_dim / 2, 6).reshape({4, head_dim / 2});
      const Tensor positions = indices_below(rows, 4, 3), gradient = random_matrix(turned, 1);
      const Tensor dy = random_matrix(o, 2), values = random_matrix(o, 3), gate = random_matrix(o, 4);
      expect_fused_cast(whole, all, [&](Backend& backend, const Output& output) {
        const Tensor d_o = empty_matrix(o);
        backend.gate_backward(GateActivation::sigmoid, dy, values, gate, d_o, output.columns(qkv, q), {});
        backend.transform_heads_backward(transform, gradient, {}, positions, output.columns(0, qkv), {});
        finish(backend);
      });
    }
  }
}

TEST(PointwiseCurves, InfinitiesAndNanBehaveAsInTheReference) {
  const MatrixCase c{2, 257, DType::f32, false};
  const Tensor g = special_matrix(c, 1), ones = empty_matrix(c);
  reference().fill(ones, 1.0);
  const auto run = [&](auto operation) {
    expect_near_reference(
        [&](Backend& backend) {
          const Output out{empty_matrix(c), {}, {}};
          operation(backend, out);
          return std::vector{out.values};
        },
        kCurveBound);
  };
  for (auto kind : {GateActivation::sigmoid, GateActivation::sigmoid2, GateActivation::silu}) {
    run([&](Backend& backend, const Output& out) { backend.gate(kind, ones, g, out); });
  }
  run([&](Backend& backend, const Output& out) { backend.activation(Activation::gelu, {}, g, out); });
}

/// All BF16 numbers, as FP32.
std::vector<float> every_bf16_number() {
  std::vector<float> numbers;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) numbers.push_back(std::bit_cast<float>(bits << 16));
  return numbers;
}

/// Relative error: 2^-24 |z|, z = argument(x), for each of the few roundings that the exponent goes through.
void expect_near_formula(const std::vector<float>& x, const Tensor& found, double (*formula)(double),
                         double (*argument)(double)) {
  const std::vector<float> y = download(reference(), found);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i])) continue;
    const double expected = formula(x[i]);
    // sigmoid(z) below 2^-127 counts as 0.
    const double bound = (5e-7 + 2.4e-7 * std::min(200.0, std::fabs(argument(x[i])))) * std::fabs(expected) +
                         6e-39 * (1.0 + std::fabs(x[i]));
    ASSERT_LE(std::fabs(y[i] - expected), bound) << x[i] << " gives " << y[i] << ", expected " << expected;
  }
}

double sigmoid(double z) {
  return 1.0 / (1.0 + std::exp(-z));
}
double gelu_argument(double x) {
  return 2.0 * std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
}

TEST(PointwiseCurves, EveryBf16NumberIsNearTheFormulaAtEveryLevel) {
  const std::vector<float> numbers = every_bf16_number();
  const auto count = static_cast<std::int64_t>(numbers.size());
  const Tensor x = upload(reference(), numbers, {1, count});
  const Tensor one = upload(reference(), std::vector<float>(numbers.size(), 1.0f), {1, count});
  const auto results = expect_one_result([&](Backend& backend) {
    std::vector<Tensor> values;
    for (int i = 0; i < 3; ++i) values.push_back(backend.allocate(DType::f32, {1, count}));
    backend.gate(GateActivation::sigmoid, one, x, Output{values[0], {}, {}});
    backend.activation(Activation::swiglu, x, one, Output{values[1], {}, {}});
    backend.activation(Activation::gelu, {}, x, Output{values[2], {}, {}});
    return values;
  });
  const auto itself = [](double z) { return z; };
  expect_near_formula(numbers, results[0], sigmoid, itself);
  expect_near_formula(
      numbers, results[1], [](double z) { return z * sigmoid(z); }, itself);
  expect_near_formula(
      numbers, results[2], [](double z) { return z * sigmoid(gelu_argument(z)); }, gelu_argument);
}

TEST(PointwiseCurves, SlopesOfLargeArgumentsAreFinite) {
  const Tensor x = upload(reference(), std::vector<float>{30.0f, 1e4f, 1e25f, -1e25f, -1e4f, -30.0f}, {1, 6});
  const Tensor one = upload(reference(), std::vector<float>(6, 1.0f), {1, 6});
  const Output dx{reference().allocate(DType::f32, {1, 6}), {}, {}};
  cpu_backends().back()->activation_backward(Activation::gelu, one, {}, x, {}, dx, {});
  EXPECT_EQ(download(reference(), dx.values), (std::vector<float>{1, 1, 1, 0, 0, 0}));
}

}  // namespace
}  // namespace quaver::testing
