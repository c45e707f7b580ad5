#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"
#include "quaver/backend.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

/// A matrix, a gain and a parameter that never receives a gradient.
class Toy : public Module {
 public:
  explicit Toy(Backend& backend) : matrix(backend, {3, 17}), gain(backend, {17}), idle(backend, {5, 1}) {}
  void visit(const std::string& name, ModuleVisitor& visitor) override {
    visitor.parameter(join_names(name, "matrix.weight"), matrix);
    visitor.parameter(join_names(name, "norm.gain"), gain);
    visitor.parameter(join_names(name, "idle.weight"), idle);
  }
  Parameter matrix, gain, idle;
};

void set(Backend& backend, const Tensor& tensor, const std::vector<double>& values) {
  const std::vector<float> floats(values.begin(), values.end());
  backend.copy_from_host(floats.data(), tensor);
}

std::vector<double> random_values(std::size_t count, std::uint64_t stream, double scale) {
  const Random random(7, stream);
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(scale * random.normal(i));
  return values;
}

/// AdamW in double, from the formulas of arXiv 1711.05101.
struct Oracle {
  std::vector<double> value, m, v;
  double decay;
  Oracle(std::vector<double> start, double d)
      : value(std::move(start)), m(value.size()), v(value.size()), decay(d) {}

  void step(const AdamW::Options& o, double lr, int t, double clip, const std::vector<double>& gradient) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      const double g = clip * gradient[i];
      m[i] = o.beta1 * m[i] + (1 - double{o.beta1}) * g;
      v[i] = o.beta2 * v[i] + (1 - double{o.beta2}) * g * g;
      const double mhat = m[i] / (1 - std::pow(o.beta1, t)), vhat = v[i] / (1 - std::pow(o.beta2, t));
      value[i] -= lr * (mhat / (std::sqrt(vhat) + o.epsilon) + decay * value[i]);
    }
  }
};

class Optimizer : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());
};

void expect_near(Backend& backend, const Parameter& parameter, const std::vector<double>& expected) {
  const std::vector<float> found = download(backend, parameter.value);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    // A dozen roundings of FP32 in each of five steps, on terms no larger than the sum of value and updates.
    EXPECT_NEAR(found[i], expected[i], 1e-5 * (std::abs(expected[i]) + 0.1)) << i;
  }
}

double norm_of(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (const double x : a) sum += x * x;
  for (const double x : b) sum += x * x;
  return std::sqrt(sum);
}

TEST_P(Optimizer, AgreesWithDoublePrecisionAndDecaysMatricesOnly) {
  Toy toy(*backend);
  Oracle matrix(random_values(51, 1, 1), 0.1), gain(random_values(17, 2, 1), 0),
      idle(random_values(5, 3, 1), 0.1);
  set(*backend, toy.matrix.value, matrix.value);
  set(*backend, toy.gain.value, gain.value);
  set(*backend, toy.idle.value, idle.value);
  AdamW::Options options;
  options.clip = 2;
  AdamW optimizer(*backend, toy, options);
  for (int t = 1; t <= 5; ++t) {
    const double scale = t % 2 ? 1e-2 : 3;  // norms below and above the clip
    const auto dmatrix = random_values(51, 10 + t, scale), dgain = random_values(17, 20 + t, scale);
    for (Parameter* parameter : {&toy.matrix, &toy.gain}) parameter->begin_accumulation();
    set(*backend, toy.matrix.gradient, dmatrix);
    set(*backend, toy.gain.gradient, dgain);
    const double norm = norm_of(dmatrix, dgain), clip = std::min(1.0, 2 / norm);
    EXPECT_NEAR(optimizer.step(1e-2f), norm, 1e-6 * norm);
    matrix.step(options, 1e-2, t, clip, dmatrix);
    gain.step(options, 1e-2, t, clip, dgain);
    idle.step(options, 1e-2, t, clip, std::vector<double>(5));
  }
  expect_near(*backend, toy.matrix, matrix.value);
  expect_near(*backend, toy.gain, gain.value);
  expect_near(*backend, toy.idle, idle.value);
}

TEST_P(Optimizer, MomentsInFewerBitsTakeFewerBytes) {
  Toy toy(*backend);
  const auto bytes = [&](DType moments) {
    const std::int64_t before = backend->memory_use().in_use;
    const AdamW optimizer(*backend, toy, {.moments = moments});
    for (const AdamW::Entry& entry : optimizer.entries()) {
      EXPECT_EQ(entry.m.dtype(), moments);
      EXPECT_EQ(entry.m_scales.defined(), moments == DType::e4m3);
      for (const float value : download(*backend, entry.v)) EXPECT_EQ(value, 0);
    }
    return backend->memory_use().in_use - before;
  };
  EXPECT_GT(bytes(DType::f32), bytes(DType::bf16));
  EXPECT_GT(bytes(DType::f32), bytes(DType::e4m3));  // of tensors that have less than one block
}

TEST_P(Optimizer, AStepRaisesVersionsAndClearsGradients) {
  Toy toy(*backend);
  for (Parameter* parameter : {&toy.matrix, &toy.gain, &toy.idle}) backend->fill(parameter->value, 1);
  backend->fill(toy.gain.accumulated_gradient(*backend), 1);
  const std::uint64_t version = toy.matrix.version;
  AdamW optimizer(*backend, toy, {});
  optimizer.step(1e-2f);
  EXPECT_EQ(optimizer.steps(), 1);
  EXPECT_GT(toy.matrix.version, version);
  for (Parameter* parameter : {&toy.matrix, &toy.gain, &toy.idle}) EXPECT_FALSE(parameter->has_gradient);
}

TEST_P(Optimizer, AGradientThatIsNotFiniteWritesNothing) {
  for (const double poison :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    Toy toy(*backend);
    for (Parameter* parameter : {&toy.matrix, &toy.gain, &toy.idle}) {
      backend->fill(parameter->value, 1);
      backend->fill(parameter->accumulated_gradient(*backend), 1);
    }
    backend->fill(toy.idle.gradient.slice(4, 1), poison);
    const std::uint64_t version = toy.matrix.version;
    AdamW optimizer(*backend, toy, {});
    EXPECT_FALSE(std::isfinite(optimizer.step(1e-2f)));
    EXPECT_EQ(optimizer.steps(), 0);
    EXPECT_EQ(toy.matrix.version, version);
    for (const Parameter* parameter : {&toy.matrix, &toy.gain, &toy.idle}) {
      for (const float value : download(*backend, parameter->value)) EXPECT_EQ(value, 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Optimizer, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& backend) { return std::string(backend.param); });

}  // namespace
}  // namespace quaver
