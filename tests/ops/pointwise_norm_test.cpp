#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

class PointwiseNorm : public ::testing::TestWithParam<MatrixCase> {
 protected:
  Tensor x = random_matrix(GetParam(), 1), dy = random_matrix(GetParam(), 2);
  Tensor gain = random_vector(GetParam().cols, 3, 1.0f, 0.2f), bias = random_vector(GetParam().cols, 4);
  Tensor mean = random_vector(GetParam().rows, 5, 0.0f, 0.1f),
         rstd = random_vector(GetParam().rows, 6, 1.0f, 0.1f);
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseNorm, ::testing::ValuesIn(matrix_cases()));

// Rows that the CUDA backend holds in registers: of one warp, of several, of all, and some that are too wide.
INSTANTIATE_TEST_SUITE_P(
    OnPacks, PointwiseNorm,
    ::testing::Values(
        MatrixCase{96, 64, DType::bf16, false}, MatrixCase{37, 264, DType::f32, false},
        MatrixCase{37, 520, DType::bf16, false}, MatrixCase{18, 4096, DType::bf16, false},
        // FP8 from registers: a last warp that is short, and so many rows that they go in stripes, the
        // last one short.
        MatrixCase{8464, 16, DType::bf16, false}, MatrixCase{48, 264, DType::f32, false},
        MatrixCase{80, 520, DType::bf16, false}, MatrixCase{3, 4104, DType::bf16, false}));

// Sums of squares have no cancellation: 16 running FP32 sums of at most 2501 terms each err by a few 1e-6 at
// worst, which rstd halves. A mean cancels, so that its error, and y's, is absolute in units of x.
constexpr Bound kRmsBound{1e-5f, 0.0f};
constexpr Bound kLayerBound{2e-5f, 2e-5f};

TEST_P(PointwiseNorm, RmsNormIsNearTheReference) {
  expect_near_reference(
      [&](Backend& backend) {
        const Output y{empty_matrix(GetParam()), {}, {}};
        const Tensor statistics = backend.allocate(DType::f32, {GetParam().rows});
        backend.rms_norm(x, gain, 1e-5f, y, statistics);
        backend.rms_norm(x, gain, 1e-5f, y, Tensor());
        return std::vector{y.values, statistics};
      },
      kRmsBound);
}

TEST_P(PointwiseNorm, LayerNormIsNearTheReference) {
  // One column has no variance: y would be rounding errors times 1 / sqrt(epsilon).
  if (GetParam().cols == 1) return;
  // Two or three columns may lie so close together that rstd is large, and the errors of the mean with it.
  const float spread = GetParam().cols <= 3 ? 100.0f : 1.0f;
  expect_near_reference(
      [&](Backend& backend) {
        const Output y{empty_matrix(GetParam()), {}, {}};
        const Tensor means = backend.allocate(DType::f32, {GetParam().rows});
        const Tensor rstds = backend.allocate(DType::f32, {GetParam().rows});
        backend.layer_norm(x, gain, bias, 1e-5f, y, means, rstds);
        return std::vector{y.values, means, rstds};
      },
      {kLayerBound.relative * spread, kLayerBound.absolute * spread});
}

// dx subtracts means of products of about 1; dgain and dbias are sums over the rows, which cancel: absolute
// errors grow with the number of rows.
Bound gradient_bound(const MatrixCase& c) {
  return {2e-5f, 2e-6f * static_cast<float>(c.rows + 20)};
}

TEST_P(PointwiseNorm, RmsNormBackwardIsNearTheReference) {
  for (bool accumulate : {false, true}) {
    expect_near_reference(
        [&](Backend& backend) {
          const Tensor dx = random_matrix(GetParam(), 7);
          const Tensor dgain = random_vector(GetParam().cols, 8);
          backend.rms_norm_backward(dy, x, gain, rstd, accumulate, {dx, {}, {}}, dgain);
          return std::vector{dx, dgain};
        },
        gradient_bound(GetParam()));
  }
}

TEST_P(PointwiseNorm, LayerNormBackwardIsNearTheReference) {
  for (bool accumulate : {false, true}) {
    expect_near_reference(
        [&](Backend& backend) {
          const Tensor dx = random_matrix(GetParam(), 7);
          const Tensor dgain = random_vector(GetParam().cols, 8), dbias = random_vector(GetParam().cols, 9);
          backend.layer_norm_backward(dy, x, gain, mean, rstd, accumulate, {dx, {}, {}}, dgain, dbias);
          return std::vector{dx, dgain, dbias};
        },
        gradient_bound(GetParam()));
  }
}

TEST_P(PointwiseNorm, ForwardCastsItsResult) {
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.rms_norm(x, gain, 1e-5f, output, Tensor());
  });
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.layer_norm(x, gain, bias, 1e-5f, output, Tensor(), Tensor());
  });
}

TEST_P(PointwiseNorm, BackwardCastsItsResult) {
  for (const bool centred : {false, true}) {
    expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
      const Tensor dgain = random_vector(GetParam().cols, 8), dbias = random_vector(GetParam().cols, 9);
      centred ? backend.layer_norm_backward(dy, x, gain, mean, rstd, false, output, dgain, dbias)
              : backend.rms_norm_backward(dy, x, gain, rstd, false, output, dgain);
      finish(backend);
    });
  }
}

/// What is cast is the sum, and neither it nor the gradients of gain and bias depend on the cast.
void expect_cast_of_the_sum(const MatrixCase& c, bool centred, bool on_devices_alone) {
  const Tensor x = random_matrix(c, 1), dy = random_matrix(c, 2), gain = random_vector(c.cols, 3, 1.0f, 0.2f);
  const Tensor mean = random_vector(c.rows, 5, 0.0f, 0.1f), rstd = random_vector(c.rows, 6, 1.0f, 0.1f);
  const auto run = [&](Backend& backend, bool casts) {
    const Output all = full_output(c, c.cols, DType::e5m2, 37.25f, true);
    reference().copy(random_matrix(c, 7), all.values);
    const Output dx = casts ? all : Output{all.values, {}, {}};
    const Tensor dgain = random_vector(c.cols, 8), dbias = random_vector(c.cols, 9);
    centred ? backend.layer_norm_backward(dy, x, gain, mean, rstd, true, dx, dgain, dbias)
            : backend.rms_norm_backward(dy, x, gain, rstd, true, dx, dgain);
    finish(backend);
    if (!casts) reference().cast(all.values, {{}, all.quantized, all.quantizer});
    std::vector<Tensor> results = tensors_of(all);
    results.insert(results.end(), {dgain, dbias});
    return results;
  };
  const auto expect_same = [&](Backend& backend) {
    const std::vector<Tensor> expected = run(backend, false), found = run(backend, true);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(bytes_of(found[i]) == bytes_of(expected[i]), true)
          << backend.describe() << ", " << (centred ? "layer_norm" : "rms_norm") << ", result " << i;
  };
  if (!on_devices_alone) {
    expect_same(reference());
    for (const auto& backend : cpu_backends()) expect_same(*backend);
  }
  if (!suits_devices({x})) return;
  for (const auto& backend : device_backends()) expect_same(*backend);
}

TEST_P(PointwiseNorm, BackwardCastsTheSum) {
  for (const bool centred : {false, true}) expect_cast_of_the_sum(GetParam(), centred, false);
}

// So many rows that blocks of the CUDA backend have stripes of them: some two, the last one short; and one each.
TEST(PointwiseNormSpecial, BackwardCastsStripes) {
  expect_cast_of_the_sum({99312, 8, DType::bf16, false}, false, true);
  expect_cast_of_the_sum({67568, 8, DType::bf16, false}, true, true);
}

/// Where the norm stores the sum that it forms.
enum class SumTo { fresh, x, addend };

TEST_P(PointwiseNorm, ForwardAddsAsAddDoes) {
  const Tensor addend = special_matrix(GetParam(), 10);
  const Tensor statistics = reference().allocate(DType::f32, {GetParam().rows});
  const auto norm = [&](Backend& backend, bool centred, const NormInput& input, const Output& y) {
    centred ? backend.layer_norm(input, gain, bias, 1e-5f, y, Tensor(), statistics)
            : backend.rms_norm(input, gain, 1e-5f, y, statistics);
  };
  for (const auto& [centred, to] :
       {std::pair{false, SumTo::fresh}, std::pair{false, SumTo::x}, std::pair{true, SumTo::addend}}) {
    const auto run = [&, centred = centred, to = to](Backend& backend, bool fused) {
      const Output y = full_output(GetParam(), GetParam().cols, DType::e4m3, 37.25f, true);
      const Tensor left = empty_matrix(GetParam()), right = empty_matrix(GetParam());
      reference().copy(x, left);
      reference().copy(addend, right);
      const Tensor sum = to == SumTo::x ? left : to == SumTo::addend ? right : empty_matrix(GetParam());
      if (!fused) backend.add(left, right, sum);
      norm(backend, centred, fused ? NormInput(left, right, sum) : NormInput(sum), y);
      finish(backend);
      std::vector<Tensor> results = tensors_of(y);
      results.insert(results.end(), {sum, copy_of(statistics)});
      return results;
    };
    const auto expect_same = [&, centred = centred](Backend& backend) {
      const std::vector<Tensor> expected = run(backend, false), found = run(backend, true);
      for (std::size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(bytes_of(found[i]) == bytes_of(expected[i]), true)
            << backend.describe() << ", " << (centred ? "layer_norm" : "rms_norm") << ", result " << i;
    };
    expect_same(reference());
    for (const auto& backend : cpu_backends()) expect_same(*backend);
    if (!suits_devices({x})) continue;
    for (const auto& backend : device_backends()) expect_same(*backend);
  }
}

TEST_P(PointwiseNorm, SumRowsIsNearTheReference) {
  expect_near_reference(
      [&](Backend& backend) {
        const Tensor sums = random_vector(GetParam().cols, 8);
        backend.sum_rows(x, sums);
        return std::vector{sums};
      },
      gradient_bound(GetParam()));
}

TEST(PointwiseNormSpecial, NanAndInfinityStayInTheirRow) {
  const MatrixCase c{5, 33, DType::f32, false};
  const Tensor x = random_matrix(c, 1), gain = random_vector(33, 2);
  set(x, 1, 7, std::nanf(""));
  set(x, 3, 32, std::numeric_limits<float>::infinity());
  expect_near_reference(
      [&](Backend& backend) {
        const Output y{empty_matrix(c), {}, {}};
        const Tensor rstd = backend.allocate(DType::f32, {5});
        backend.rms_norm(x, gain, 1e-5f, y, rstd);
        return std::vector{y.values, rstd};
      },
      kRmsBound);
}

}  // namespace
}  // namespace quaver::testing
