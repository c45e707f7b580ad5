/// Norms against formulas in double, and their gradients against differences of those.
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

constexpr std::int64_t kRows = 4;
constexpr float kEpsilon = 1e-2f;  // large enough that a gradient that forgets it is wrong

/// Statistics and the normalised row are FP32: a few roundings, and sums of at most 257 terms whose errors
/// add up to some 2^-20 at worst.
constexpr double kBound = 4e-6;

struct Norm {
  bool centred = false;
  Doubles x, gain, bias;

  std::int64_t cols() const { return static_cast<std::int64_t>(gain.size()); }
  double mean(std::int64_t m) const {
    double sum = 0;
    for (std::int64_t n = 0; n < cols(); ++n) sum += x[m * cols() + n];
    return centred ? sum / static_cast<double>(cols()) : 0;
  }
  double rstd(std::int64_t m) const {
    double squares = 0;
    for (std::int64_t n = 0; n < cols(); ++n) squares += std::pow(x[m * cols() + n] - mean(m), 2);
    return 1 / std::sqrt(squares / static_cast<double>(cols()) + static_cast<double>(kEpsilon));
  }
  Doubles y() const {
    Doubles result;
    for (std::int64_t m = 0; m < kRows; ++m) {
      const double centre = mean(m), r = rstd(m);
      for (std::int64_t n = 0; n < cols(); ++n)
        result.push_back((x[m * cols() + n] - centre) * r * gain[n] + (centred ? bias[n] : 0));
    }
    return result;
  }
};

Norm random_norm(std::int64_t cols, bool centred) {
  return {centred, normal_values(kRows * cols, 1, 0.7f), normal_values(cols, 2, 1, 0.3f),
          normal_values(cols, 3)};
}

Doubles plus(Doubles a, const Doubles& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

class NormOperation : public BackendTest {
 protected:
  /// y, and the statistics that backward wants.
  std::vector<Tensor> forward(const Norm& norm) {
    const Tensor x = matrix(norm.x, kRows, norm.cols()), y = slice(kRows, norm.cols());
    const Tensor mean = backend->allocate(DType::f32, {kRows}), rstd = backend->allocate(DType::f32, {kRows});
    const Output out{y, {}, {}};
    if (norm.centred) {
      backend->layer_norm(x, vector(norm.gain), vector(norm.bias), kEpsilon, out, mean, rstd);
    } else {
      backend->rms_norm(x, vector(norm.gain), kEpsilon, out, rstd);
    }
    return {y, mean, rstd};
  }

  void expect_gradients(Norm norm, bool accumulate) {
    const std::int64_t cols = norm.cols();
    const Doubles dy = normal_values(kRows * cols, 4), old_dx = normal_values(kRows * cols, 5),
                  old_gain = normal_values(cols, 6), old_bias = normal_values(cols, 7);
    const auto loss = [&] { return dot(norm.y(), dy); };
    const std::vector<Tensor> saved = forward(norm);
    const Tensor x = matrix(norm.x, kRows, cols), dy_tensor = matrix(dy, kRows, cols);
    const Tensor dx = matrix(old_dx, kRows, cols), dgain = vector(old_gain), dbias = vector(old_bias);
    if (norm.centred) {
      backend->layer_norm_backward(dy_tensor, x, vector(norm.gain), saved[1], saved[2], accumulate,
                                   {dx, {}, {}}, dgain, dbias);
      expect_close(floats(dbias), plus(numeric_gradient(norm.bias, loss), old_bias), kBound, "dbias");
    } else {
      backend->rms_norm_backward(dy_tensor, x, vector(norm.gain), saved[2], accumulate, {dx, {}, {}}, dgain);
    }
    expect_close(floats(dgain), plus(numeric_gradient(norm.gain, loss), old_gain), kBound, "dgain");
    const Doubles expected = numeric_gradient(norm.x, loss);
    expect_close(floats(dx), accumulate ? plus(expected, old_dx) : expected, kBound, "dx");
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, NormOperation, every_backend(), backend_name);

TEST_P(NormOperation, ForwardFollowsTheFormula) {
  for (bool centred : {false, true}) {
    for (std::int64_t cols : {3, 17, 257}) {
      const Norm norm = random_norm(cols, centred);
      const std::vector<Tensor> found = forward(norm);
      Doubles means, rstds;
      for (std::int64_t m = 0; m < kRows; ++m) {
        means.push_back(norm.mean(m));
        rstds.push_back(norm.rstd(m));
      }
      expect_close(floats(found[0]), norm.y(), kBound, "y");
      expect_close(floats(found[2]), rstds, kBound, "rstd");
      if (centred) expect_close(floats(found[1]), means, kBound, "mean");
    }
  }
}

TEST_P(NormOperation, RmsNormBackwardIsTheGradient) {
  for (std::int64_t cols : {3, 17, 65}) {
    for (bool accumulate : {false, true}) expect_gradients(random_norm(cols, false), accumulate);
  }
}

TEST_P(NormOperation, LayerNormBackwardIsTheGradient) {
  for (std::int64_t cols : {3, 17, 65}) {
    for (bool accumulate : {false, true}) expect_gradients(random_norm(cols, true), accumulate);
  }
}

}  // namespace
}  // namespace quaver::testing
