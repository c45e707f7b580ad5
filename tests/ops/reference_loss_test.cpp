/// Cross entropy and embeddings against formulas in double, and their gradients.
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

struct Loss {
  std::int64_t vocab;
  Doubles logits;
  std::vector<std::int32_t> targets;

  double of_row(std::int64_t m) const {
    if (targets[m] < 0) return 0;
    double sum = 0;
    for (std::int64_t n = 0; n < vocab; ++n) sum += std::exp(logits[m * vocab + n]);
    return std::log(sum) - logits[m * vocab + targets[m]];
  }
  Doubles losses() const {
    Doubles result;
    for (std::size_t m = 0; m < targets.size(); ++m) result.push_back(of_row(static_cast<std::int64_t>(m)));
    return result;
  }
};

class LossOperation : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, LossOperation, every_backend(), backend_name);

TEST_P(LossOperation, CrossEntropyFollowsItsFormulaAndGradient) {
  // Differences of numbers of about 10, each with a few roundings.
  constexpr double kBound = 4e-6;
  constexpr float kScale = 0.37f;
  for (std::int64_t vocab : {1, 17, 257}) {
    const auto last = static_cast<std::int32_t>(vocab - 1);
    Loss in{vocab, normal_values(4 * vocab, 1, 0, 3), {last, -1, 0, last / 2}};
    const Tensor targets = upload(*backend, in.targets, {4}), losses = backend->allocate(DType::f32, {4});
    const Output dlogits{slice(4, vocab), {}, {}};
    backend->cross_entropy(matrix(in.logits, 4, vocab), targets, kScale, losses, dlogits);
    expect_close(floats(losses), in.losses(), kBound, "losses");
    if (vocab == 1) {
      EXPECT_EQ(floats(dlogits.values), std::vector<float>(4)) << "one class has nothing to learn";
      continue;
    }
    const Doubles expected = numeric_gradient(
        in.logits, [&] { return static_cast<double>(kScale) * dot(in.losses(), Doubles(4, 1.0)); });
    expect_close(floats(dlogits.values), expected, kBound, "dlogits");
    for (std::int64_t n = 0; n < vocab; ++n)
      EXPECT_EQ(floats(dlogits.values)[vocab + n], 0) << "the row without a target";
  }
}

TEST_P(LossOperation, LargeLogitsNeitherOverflowNorLoseTheLoss) {
  const Tensor logits = matrix({1000, 999, -1000, -1e30}, 1, 4);
  const Tensor losses = backend->allocate(DType::f32, {1});
  backend->cross_entropy(logits, upload(*backend, std::vector<std::int32_t>{1}, {1}), 1, losses, {});
  EXPECT_NEAR(floats(losses)[0], 1 + std::log1p(std::exp(-1.0)), 1e-4)
      << "FP32 numbers of 1000 lie 6e-5 apart";
}

// Sums of two small integers are exact.
TEST_P(LossOperation, EmbeddingReadsRowsAndItsGradientAddsToThem) {
  const Tensor table = vector({1, 2, 3, 4, 5, 6}).reshape({3, 2});
  const Tensor position_table = vector({10, 20, 30, 40}).reshape({2, 2});
  const Tensor tokens = upload(*backend, std::vector<std::int32_t>{2, 0, 2}, {3});
  const Tensor positions = upload(*backend, std::vector<std::int32_t>{0, 1, 1}, {3});
  const Tensor out = slice(3, 2);
  backend->embedding(tokens, table, {}, {}, out);
  EXPECT_EQ(floats(out), (std::vector<float>{5, 6, 1, 2, 5, 6}));
  backend->embedding(tokens, table, positions, position_table, out);
  EXPECT_EQ(floats(out), (std::vector<float>{15, 26, 31, 42, 35, 46}));

  const Tensor dout = matrix({1, 2, 4, 8, 16, 32}, 3, 2);
  backend->embedding_backward(dout, tokens, positions, table, position_table);
  EXPECT_EQ(floats(table), (std::vector<float>{5, 10, 3, 4, 22, 40}));
  EXPECT_EQ(floats(position_table), (std::vector<float>{11, 22, 50, 80}));
}

}  // namespace
}  // namespace quaver::testing
