#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

class PointwiseLoss : public ::testing::TestWithParam<MatrixCase> {
 protected:
  Tensor logits = random_matrix(GetParam(), 1, 4.0f);
  Tensor targets = make_targets();

  static Tensor make_targets() {
    const Tensor indices = indices_below(GetParam().rows, GetParam().cols, 2);
    for (std::int64_t m = 2; m < GetParam().rows; m += 5) indices.data<std::int32_t>()[m] = -1;
    return indices;
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseLoss, ::testing::ValuesIn(matrix_cases()));
// Rows of packs, longer than a block's threads take at once, and more of them than a tile has.
INSTANTIATE_TEST_SUITE_P(Packs, PointwiseLoss,
                         ::testing::Values(MatrixCase{70, 2056, DType::bf16, false},
                                           MatrixCase{3, 8192, DType::bf16, false}));

// The loss is a difference of numbers of about 10, each with the rounding errors of a sum of exponentials;
// the reference itself sums up to 40001 of them into one FP32 number. Probabilities are at most 1, and so are
// their errors' units; the reference's exp(z - lse) carries the rounding of z - lse, about 1e-6 relative.
constexpr Bound kLossBound{2e-5f, 1e-4f};
constexpr Bound kGradientBound{2e-4f, 1e-6f};

TEST_P(PointwiseLoss, LossIsNearTheReference) {
  expect_near_reference(
      [&](Backend& backend) {
        const Tensor losses = backend.allocate(DType::f32, {GetParam().rows});
        backend.cross_entropy(logits, targets, 1.0f, losses, Output());
        return std::vector{losses};
      },
      kLossBound);
}

TEST_P(PointwiseLoss, GradientIsNearTheReference) {
  expect_near_reference(
      [&](Backend& backend) {
        const Tensor losses = backend.allocate(DType::f32, {GetParam().rows});
        const Output dlogits{empty_matrix(GetParam()), {}, {}};
        backend.cross_entropy(logits, targets, 0.125f, losses, dlogits);
        return std::vector{dlogits.values};
      },
      kGradientBound);
}

TEST_P(PointwiseLoss, GradientMayOverwriteTheLogits) {
  const auto expect_same = [&](Backend& backend) {
    const Tensor losses = random_vector(GetParam().rows, 3), same_losses = random_vector(GetParam().rows, 4);
    // Of one layout: a device sums aligned rows in another order than others.
    const Output in_place{copy_of(logits), {}, {}}, apart{copy_of(logits), {}, {}};
    const Tensor packed = copy_of(logits);  // lives until the device has finished
    backend.cross_entropy(packed, targets, 0.5f, losses, apart);
    backend.cross_entropy(in_place.values, targets, 0.5f, same_losses, in_place);
    finish(backend);
    EXPECT_EQ(bytes_of(in_place.values) == bytes_of(apart.values), true) << backend.describe();
    EXPECT_EQ(bytes_of(same_losses) == bytes_of(losses), true) << backend.describe();
  };
  expect_same(*cpu_backends().back());
  if (!suits_devices({logits})) return;
  for (const auto& backend : device_backends()) expect_same(*backend);
}

TEST_P(PointwiseLoss, GradientIsCast) {
  const Tensor losses = random_vector(GetParam().rows, 3);
  expect_fused_cast(GetParam(), GetParam().cols, [&](Backend& backend, const Output& output) {
    backend.cross_entropy(logits, targets, 1.0f, losses, output);
  });
}

/// Row 0 has a NaN, row 1 an infinity, row 2 nothing but -infinity, row 3 one -infinity: losses of `cols` logits that are 0.5 elsewhere.
void expect_special_rows(Backend& backend, DType dtype, std::int64_t cols) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values(static_cast<std::size_t>(4 * cols), 0.5f);
  values[5] = std::nanf("");
  values[cols + 3] = kInfinity;
  for (int n = 0; n < cols; ++n) values[2 * cols + n] = -kInfinity;
  values[3 * cols + 2] = -kInfinity;
  const MatrixCase size{4, cols, dtype, false};
  const Tensor logits = empty_matrix(size), losses = random_vector(4, 1);
  reference().convert(upload(reference(), values, {4, cols}), logits);
  if (backend.name() == "cuda" && !suits_devices({logits})) return;
  const Tensor targets = upload(reference(), std::vector<std::int32_t>{0, 0, 0, 1}, {4});
  for (const Output& output : {Output(), Output{empty_matrix(size), {}, {}}}) {
    backend.cross_entropy(logits, targets, 1.0f, losses, output);
    finish(backend);
    const std::vector<float> found = download(reference(), losses);
    for (int m = 0; m < 3; ++m)
      EXPECT_TRUE(std::isnan(found[m])) << "row " << m << " on " << backend.describe();
    // A few units of the last place: that of numbers from 4 on is 4.8e-7, from 8 on 9.5e-7.
    const float expected = std::log(static_cast<float>(cols - 1));
    EXPECT_NEAR(found[3], expected, expected < 4 ? 1e-6f : 2e-6f) << backend.describe();
  }
}

TEST(PointwiseLossSpecial, ARowWithNanOrOnlyInfinityIsNan) {
  for (const auto& backend : cpu_backends()) expect_special_rows(*backend, DType::f32, 19);
  for (const auto& backend : device_backends()) {
    for (const std::int64_t cols : {19, 40, 4104}) expect_special_rows(*backend, DType::bf16, cols);
  }
}

TEST(PointwiseLossSpecial, ATargetOutsideTheVocabularyIsRefused) {
  const Tensor logits = random_matrix({2, 7, DType::f32, false}, 1), losses = random_vector(2, 1);
  const Tensor targets = upload(reference(), std::vector<std::int32_t>{0, 7}, {2});
  EXPECT_THROW(cpu_backends()[0]->cross_entropy(logits, targets, 1.0f, losses, Output()), Error);
  for (const auto& device : device_backends()) {
    const Tensor packs = random_matrix({2, 8, DType::bf16, false}, 1),
                 beyond = upload(reference(), std::vector<std::int32_t>{0, 8}, {2}),
                 found = device->allocate(DType::f32, {2});
    device->cross_entropy(packs, beyond, 1.0f, found, {packs, {}, {}});
    EXPECT_THROW(download(*device, found), Error) << device->describe();
  }
}

class PointwiseEmbedding : public ::testing::TestWithParam<MatrixCase> {
 protected:
  static constexpr std::int64_t kVocab = 23, kPositions = 9;
  Tensor tokens = indices_below(GetParam().rows, kVocab, 1),
         positions = indices_below(GetParam().rows, kPositions, 2);
  static Tensor table(std::int64_t rows, std::uint64_t stream) {
    return random_vector(rows * GetParam().cols, stream).reshape({rows, GetParam().cols});
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseEmbedding, ::testing::ValuesIn(matrix_cases()));
// The CUDA backend sorts chunks of 1024 rows.
INSTANTIATE_TEST_SUITE_P(Chunks, PointwiseEmbedding,
                         ::testing::Values(MatrixCase{2100, 8, DType::bf16, false}));

TEST_P(PointwiseEmbedding, ForwardEqualsTheReference) {
  const Tensor token_table = table(kVocab, 3), position_table = table(kPositions, 4);
  expect_equals_reference([&](Backend& backend) {
    const Tensor plain = empty_matrix(GetParam()), learned = empty_matrix(GetParam());
    backend.embedding(tokens, token_table, {}, {}, plain);
    backend.embedding(tokens, token_table, positions, position_table, learned);
    return std::vector{plain, learned};
  });
}

TEST_P(PointwiseEmbedding, BackwardEqualsTheReference) {
  const Tensor dout = random_matrix(GetParam(), 5);
  expect_equals_reference([&](Backend& backend) {
    const Tensor dtokens = table(kVocab, 3), dpositions = table(kPositions, 4);
    backend.embedding_backward(dout, tokens, positions, dtokens, dpositions);
    backend.embedding_backward(dout, tokens, {}, dtokens, {});
    return std::vector{dtokens, dpositions};
  });
}

TEST(PointwiseEmbeddingSpecial, TablesInBf16AreLookedUpAsTheirNumbers) {
  const Tensor table = random_matrix({7, 37, DType::bf16, false}, 3),
               positions = random_matrix({5, 37, DType::bf16, false}, 4);
  const auto widened = [](const Tensor& t) {
    return upload(reference(), download(reference(), t), t.shape());
  };
  const Tensor tokens = indices_below(33, 7, 1), places = indices_below(33, 5, 2);
  for (const DType type : {DType::f32, DType::bf16}) {
    const Tensor expected = empty_matrix({33, 37, type, true});
    reference().embedding(tokens, widened(table), places, widened(positions), expected);
    const auto expect_same = [&](Backend& backend) {
      const Tensor found = empty_matrix({33, 37, type, true});
      backend.embedding(tokens, table, places, positions, found);
      finish(backend);
      EXPECT_EQ(bytes_of(found) == bytes_of(expected), true) << backend.describe();
    };
    expect_same(reference());
    for (const auto& backend : cpu_backends()) expect_same(*backend);
    for (const auto& backend : device_backends()) expect_same(*backend);
  }
}

TEST(PointwiseEmbeddingSpecial, ATokenOutsideTheTableIsRefused) {
  const Tensor table = random_vector(12, 1).reshape({4, 3}), out = random_vector(6, 2).reshape({2, 3});
  for (std::int32_t bad : {-1, 4}) {
    const Tensor tokens = upload(reference(), std::vector<std::int32_t>{0, bad}, {2});
    EXPECT_THROW(cpu_backends()[0]->embedding(tokens, table, {}, {}, out), Error);
    EXPECT_THROW(cpu_backends()[0]->embedding_backward(out, tokens, {}, table, {}), Error);
  }
}

}  // namespace
}  // namespace quaver::testing
