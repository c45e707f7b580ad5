#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

struct HeadCase {
  std::int64_t rows, heads, head_dim, rotated;
  QkNorm norm;
  DType dtype;
  bool strided;
};

void PrintTo(const HeadCase& c, std::ostream* out) {
  *out << c.rows << " rows, " << c.heads << " heads of " << c.head_dim << ", " << c.rotated
       << " rotated, norm " << static_cast<int>(c.norm) << " " << name_of(c.dtype)
       << (c.strided ? " strided" : "");
}

std::vector<HeadCase> head_cases() {
  struct Size {
    std::int64_t rows, heads, head_dim, rotated;
  };
  std::vector<HeadCase> cases;
  for (Size size : {Size{1, 1, 2, 2}, Size{5, 3, 17, 10}, Size{65, 2, 64, 64}, Size{2, 1, 33, 0},
                    Size{301, 4, 48, 24}, Size{21, 3, 96, 96}, Size{9, 2, 128, 0}}) {
    for (QkNorm norm : {QkNorm::none, QkNorm::pre_rope, QkNorm::post_rope}) {
      for (DType dtype : {DType::f32, DType::bf16}) {
        for (bool strided : {false, true}) {
          cases.push_back({size.rows, size.heads, size.head_dim, size.rotated, norm, dtype, strided});
        }
      }
    }
  }
  return cases;
}

class PointwiseHeads : public ::testing::TestWithParam<HeadCase> {
 protected:
  static constexpr std::int64_t kPositions = 40;
  MatrixCase matrix{GetParam().rows, GetParam().heads* GetParam().head_dim, GetParam().dtype,
                    GetParam().strided};
  Tensor x = random_matrix(matrix, 1), dout = random_matrix(matrix, 2);
  Tensor positions = indices_below(GetParam().rows, kPositions, 3);
  HeadTransform transform = make_transform();

  // Any table will do: the gradient of a turn is linear in it.
  static HeadTransform make_transform() {
    const HeadCase& c = GetParam();
    HeadTransform t{c.heads, c.head_dim, c.norm, 1e-5f, {}, {}, {}};
    if (c.norm != QkNorm::none) t.gain = random_vector(c.head_dim, 4, 1.0f, 0.2f);
    if (c.rotated == 0) return t;
    t.cosine = random_vector(kPositions * c.rotated / 2, 5).reshape({kPositions, c.rotated / 2});
    t.sine = random_vector(kPositions * c.rotated / 2, 6).reshape({kPositions, c.rotated / 2});
    return t;
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseHeads, ::testing::ValuesIn(head_cases()));

TEST_P(PointwiseHeads, ForwardIsNearTheReference) {
  const auto run = [&](Backend& backend) {
    const Tensor out = empty_matrix(matrix);
    backend.transform_heads(transform, x, positions, out);
    return std::vector{out};
  };
  // A turn is two products and one sum, in the reference's order. A norm sums at most 64 squares in another
  // order; what a turn then cancels leaves an absolute error.
  if (GetParam().norm == QkNorm::none) return expect_equals_reference(run);
  expect_near_reference(run, {1e-5f, 1e-5f});
}

TEST_P(PointwiseHeads, InPlace) {
  const auto run = [&](Backend& backend) {
    const Tensor apart = empty_matrix(matrix), in_place = empty_matrix(matrix);
    backend.transform_heads(transform, x, positions, apart);
    backend.copy(x, in_place);
    backend.transform_heads(transform, in_place, positions, in_place);
    return std::vector{apart, in_place};
  };
  const auto expect_same = [](Backend& backend, const std::vector<Tensor>& results) {
    EXPECT_TRUE(bytes_of(results[0]) == bytes_of(results[1])) << backend.describe();
  };
  expect_same(reference(), run(reference()));
  expect_same(*cpu_backends().front(), expect_one_result(run));
  if (!suits_devices({x})) return;
  for (const auto& backend : device_backends()) expect_same(*backend, host_results(*backend, run));
}

TEST_P(PointwiseHeads, BackwardIsNearTheReference) {
  const auto run = [&](Backend& backend) {
    const Tensor dx = empty_matrix(matrix), dgain = random_vector(GetParam().head_dim, 7);
    const bool has_norm = GetParam().norm != QkNorm::none;
    backend.transform_heads_backward(transform, dout, has_norm ? x : Tensor(), positions, {dx, {}, {}},
                                     has_norm ? dgain : Tensor());
    return std::vector{dx, dgain};
  };
  if (GetParam().norm == QkNorm::none) return expect_equals_reference(run);
  // dgain sums rows * heads products of about 1 in blocks. Heads of two elements may be small: rstd up to 100
  // or so multiplies the errors of dx.
  const float terms = static_cast<float>(GetParam().rows * GetParam().heads);
  expect_near_reference(run, {3e-5f, 2e-5f + 2e-6f * terms});
}

TEST_P(PointwiseHeads, BackwardCastsItsResult) {
  const bool has_norm = GetParam().norm != QkNorm::none;
  for (const std::int64_t untouched : {0, 2}) {
    if (has_norm && untouched > 0) continue;
    HeadTransform wide = transform;
    wide.untouched = untouched;
    MatrixCase c = matrix;
    c.cols += untouched * GetParam().head_dim;
    const Tensor gradient = random_matrix(c, 2);
    expect_fused_cast(c, c.cols, [&](Backend& backend, const Output& output) {
      const Tensor dgain = has_norm ? random_vector(GetParam().head_dim, 7) : Tensor();
      backend.transform_heads_backward(wide, gradient, has_norm ? x : Tensor(), positions, output, dgain);
      finish(backend);
    });
  }
}

TEST_P(PointwiseHeads, BackwardPassesOnWhatIsUntouched) {
  if (GetParam().norm != QkNorm::none) return;
  HeadTransform wide = transform;
  wide.untouched = 3;
  MatrixCase c = matrix;
  c.cols += 3 * GetParam().head_dim;
  const Tensor gradient = random_matrix(c, 2);
  const auto run = [&](Backend& backend) {
    const Tensor dx = empty_matrix(c), alone = empty_matrix(matrix);
    backend.transform_heads_backward(wide, gradient, {}, positions, {dx, {}, {}}, {});
    backend.transform_heads_backward(transform, gradient.columns(0, matrix.cols), {}, positions,
                                     {alone, {}, {}}, {});
    finish(backend);
    EXPECT_TRUE(bytes_of(dx.columns(0, matrix.cols)) == bytes_of(alone)) << backend.describe();
    EXPECT_TRUE(bytes_of(dx.columns(matrix.cols, 3 * GetParam().head_dim)) ==
                bytes_of(gradient.columns(matrix.cols, 3 * GetParam().head_dim)))
        << backend.describe();
    return std::vector{dx};
  };
  expect_equals_reference(run);
}

}  // namespace
}  // namespace quaver::testing
