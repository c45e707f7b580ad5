/// AdamW and the norm of gradients against formulas in double.
#include <limits>

#include "quaver/error.h"
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

/// Three steps of a dozen FP32 roundings each.
constexpr double kBound = 1e-6;

struct Weights {
  Doubles value, m, v;
};

/// The formulas of backend.h.
Weights adamw(Weights w, const AdamWStep& step, double clip, const Doubles& gradient) {
  const double beta1 = step.beta1, beta2 = step.beta2, lr = step.lr, count = static_cast<double>(step.step);
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    const double g = gradient[i] * clip;
    w.m[i] = beta1 * w.m[i] + (1 - beta1) * g;
    w.v[i] = beta2 * w.v[i] + (1 - beta2) * g * g;
    const double m_hat = w.m[i] / (1 - std::pow(beta1, count)), v_hat = w.v[i] / (1 - std::pow(beta2, count));
    w.value[i] -= lr * (m_hat / (std::sqrt(v_hat) + static_cast<double>(step.epsilon)) +
                        static_cast<double>(step.weight_decay) * w.value[i]);
  }
  return w;
}

class OptimizerOperation : public BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, OptimizerOperation, every_backend(), backend_name);

TEST_P(OptimizerOperation, AdamWFollowsItsFormulasWithAndWithoutClipping) {
  constexpr float kNorm = 5;
  for (const auto& [max_norm, clip] : {std::pair{0.0f, 1.0}, std::pair{2.0f, 0.4}, std::pair{7.0f, 1.0}}) {
    Weights expected{normal_values(33, 1), Doubles(33), Doubles(33)};
    const Tensor value = vector(expected.value), m = vector(expected.m), v = vector(expected.v);
    for (int count = 1; count <= 3; ++count) {
      const AdamWStep step{.lr = 0.01f, .epsilon = 0.02f, .weight_decay = 0.1f, .step = count};
      const Doubles gradient = normal_values(33, 1 + static_cast<std::uint64_t>(count));
      backend->adamw(step, vector({kNorm}), max_norm,
                     std::vector{AdamWTensor{vector(gradient), value, m, v}});
      expected = adamw(expected, step, clip, gradient);
    }
    expect_close(floats(value), expected.value, kBound, "value");
    expect_close(floats(m), expected.m, kBound, "m");
    expect_close(floats(v), expected.v, kBound, "v");
  }
}

TEST_P(OptimizerOperation, TheFirstStepMovesEveryWeightByTheLearningRate) {
  const Tensor value = vector({1, 1, 1}), m = vector({0, 0, 0}), v = vector({0, 0, 0});
  backend->adamw({.lr = 0.125f, .epsilon = 0}, vector({1}), 0,
                 std::vector{AdamWTensor{vector({1e-3, -7, 100}), value, m, v}});
  expect_close(floats(value), {0.875, 1.125, 0.875}, kBound, "value");
}

TEST_P(OptimizerOperation, OneCallStepsManyTensorsAndDecaysThoseThatSaySo) {
  // With a zero gradient and moments only the decay is left: value - lr * 0.5 * value. More tensors than one launch
  // takes, the sizes around a block's.
  std::vector<AdamWTensor> tensors;
  for (int i = 0; i < 150; ++i) {
    const auto count = static_cast<std::size_t>(i == 77 ? 9001 : i % 3);
    const Tensor zero = vector(Doubles(count));
    tensors.push_back(
        {zero, vector(Doubles(count, i + 1)), vector(Doubles(count)), vector(Doubles(count)), i % 2 == 0});
  }
  backend->adamw({.lr = 0.25f, .weight_decay = 0.5f}, vector({1}), 0, tensors);
  for (int i = 0; i < 150; ++i) {
    const auto count = static_cast<std::size_t>(i == 77 ? 9001 : i % 3);
    EXPECT_EQ(floats(tensors[static_cast<std::size_t>(i)].value),
              std::vector<float>(count, static_cast<float>(i + 1) * (i % 2 == 0 ? 0.875f : 1.0f)))
        << i;
  }
}

TEST_P(OptimizerOperation, AdamWWritesNothingWhenTheNormIsNotFinite) {
  for (const double norm : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    const Tensor value = vector({1, 2}), m = vector({3, 4}), v = vector({5, 6});
    backend->adamw({.lr = 1}, vector({norm}), 1, std::vector{AdamWTensor{vector({1, 1}), value, m, v}});
    EXPECT_EQ(floats(value), (std::vector<float>{1, 2}));
    EXPECT_EQ(floats(m), (std::vector<float>{3, 4}));
    EXPECT_EQ(floats(v), (std::vector<float>{5, 6}));
  }
}

TEST_P(OptimizerOperation, AdamWWritesNothingWhenAClippedGradientCouldNotBeSquared) {
  const auto steps = [&](double norm, float max_norm) {
    const Tensor value = vector({1, 2}), m = vector({3, 4}), v = vector({5, 6});
    backend->adamw({.lr = 1}, vector({norm}), max_norm,
                   std::vector<AdamWTensor>{{vector({norm, 0}), value, m, v}});
    for (const Tensor& tensor : {value, m, v}) {
      for (const float x : floats(tensor))
        EXPECT_TRUE(std::isfinite(x)) << norm << " clipped to " << max_norm;
    }
    return floats(m)[0] != 3;
  };
  EXPECT_TRUE(steps(1e19, 0));
  EXPECT_FALSE(steps(1.1e19, 0)) << "its square is 1.2e38, near the largest FP32 number";
  EXPECT_FALSE(steps(3e38, 0));
  EXPECT_TRUE(steps(3e38, 1));
  EXPECT_FALSE(steps(3e38, 2e19f));
}

TEST_P(OptimizerOperation, NonFiniteCastsMakeTheNormNan) {
  // More slots than a block has threads; each has seen `nan` and `infinite` in one of them.
  const auto counters = [&](std::int64_t slots, std::int64_t nan, std::int64_t infinite) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(slots * kCastCounters), 7);
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      counts[slot * kCastCounters + kCastNan] = slot == slots - 1 ? nan : 0;
      counts[slot * kCastCounters + kCastInfinite] = slot == 5 ? infinite : 0;
    }
    const Tensor tensor = backend->allocate(DType::i64, {slots, kCastCounters});
    backend->copy_from_host(counts.data(), tensor);
    return tensor;
  };
  const auto refuses = [&](const Tensor& before, const Tensor& after) {
    const Tensor norm = vector({1.5});
    backend->refuse_non_finite_casts(before, after, norm);
    EXPECT_TRUE(std::isnan(floats(norm)[0]) || floats(norm)[0] == 1.5f);
    return std::isnan(floats(norm)[0]);
  };
  EXPECT_FALSE(refuses(counters(300, 2, 3), counters(300, 2, 3))) << "those that were known";
  EXPECT_TRUE(refuses(counters(300, 2, 3), counters(300, 3, 3)));
  EXPECT_TRUE(refuses(counters(300, 2, 3), counters(300, 2, 4)));
  EXPECT_FALSE(refuses(counters(0, 0, 0), counters(0, 0, 0)));
  EXPECT_FALSE(refuses(counters(0, 0, 0), counters(300, 0, 0))) << "slots of a first step";
  EXPECT_TRUE(refuses(counters(0, 0, 0), counters(300, 0, 1)));
}

TEST_P(OptimizerOperation, NonFiniteValuesMakeTheNormNan) {
  const auto refuses = [&](const Doubles& values) {
    const Tensor norm = vector({1.5});
    backend->refuse_non_finite(vector(values), norm);
    EXPECT_TRUE(std::isnan(floats(norm)[0]) || floats(norm)[0] == 1.5f);
    return std::isnan(floats(norm)[0]);
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(refuses({0, -1, 3e38, -3e38}));
  EXPECT_FALSE(refuses({}));
  // In the first, in a last block of one thread, and in between.
  for (const std::size_t place : {0, 300, 512}) {
    for (const double value : {kInfinity, -kInfinity, std::nan("")}) {
      Doubles values(513, 2.0);
      values[place] = value;
      EXPECT_TRUE(refuses(values)) << value << " at " << place;
    }
  }
}

TEST_P(OptimizerOperation, ATargetThatIsNoClassMakesTheNormNanBeforeItIsThrown) {
  if (backend->device() == Device::host) GTEST_SKIP() << "throws at once";
  const Tensor logits = backend->allocate(DType::f32, {1, 2}), targets = backend->allocate(DType::i32, {1});
  backend->fill(logits, 0);
  backend->fill(targets, 2);
  const Tensor losses = backend->allocate(DType::f32, {1}), norm = vector({1.5});
  backend->cross_entropy(logits, targets, 1, losses, {});
  backend->refuse_non_finite(losses, norm);
  EXPECT_THROW(floats(norm), Error);
  EXPECT_TRUE(std::isnan(floats(norm)[0]));
}

TEST_P(OptimizerOperation, TheNormSpansAllTensorsAndIsSummedInDouble) {
  const Tensor norm = backend->allocate(DType::f32, {1});
  backend->global_norm(std::vector{vector({3}), vector({0, -4, 12})}, norm);
  EXPECT_EQ(floats(norm)[0], 13.0f);
  // In FP32 the squares of the ones would be lost beside that of 4096, and that of 1e30 would overflow.
  Doubles values(20001, 1.0);
  values[0] = 4096;
  backend->global_norm(std::vector{vector(values)}, norm);
  EXPECT_EQ(floats(norm)[0], static_cast<float>(std::sqrt(4096.0 * 4096.0 + 20000.0)));
  backend->global_norm(std::vector{vector({3e30, -4e30})}, norm);
  EXPECT_FLOAT_EQ(floats(norm)[0], 5e30f);
  backend->global_norm(std::vector{vector({1, std::nan("")})}, norm);
  EXPECT_TRUE(std::isnan(floats(norm)[0]));
}

}  // namespace
}  // namespace quaver::testing
