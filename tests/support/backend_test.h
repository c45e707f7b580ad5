/// Tests of operations that run on every backend: the fixture, and tensors from numbers in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "quaver/backend.h"
#include "support/test_backends.h"

namespace quaver::testing {

using Doubles = std::vector<double>;

/// A test with the backend's name as its parameter.
class BackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = make_test_backend(GetParam());

  /// Uninitialised columns at an odd offset of a wider matrix.
  Tensor slice(std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    return backend->allocate(dtype, {rows, cols + 4}).columns(3, cols);
  }
  Tensor vector(const Doubles& values) {
    const std::vector<float> floats(values.begin(), values.end());
    return upload(*backend, floats, {static_cast<std::int64_t>(floats.size())});
  }
  /// A strided matrix of these values, each rounded once.
  Tensor matrix(const Doubles& values, std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    const std::vector<float> floats(values.begin(), values.end());
    const Tensor strided = slice(rows, cols, dtype);
    backend->copy(upload(*backend, floats, {rows, cols}, dtype), strided);
    return strided;
  }
  std::vector<float> floats(const Tensor& tensor) { return download(*backend, tensor); }
};

inline auto every_backend() {
  return ::testing::ValuesIn(test_backends());
}
inline std::string backend_name(const ::testing::TestParamInfo<std::string>& test) {
  return test.param;
}

/// mean + std * normal numbers, all of them FP32 numbers, so that uploading them is exact.
inline Doubles normal_values(std::int64_t count, std::uint64_t stream, float mean = 0, float std = 1) {
  const Random random(12, stream);
  Doubles values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(mean + std * random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

inline double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// The gradient of `loss`, which reads `values`, by central differences in double. With a step of 1e-5 both
/// the step's own error (1e-10 of the third derivative) and the cancellation (1e-16 / 1e-5) lie far below
/// FP32.
inline Doubles numeric_gradient(Doubles& values, const std::function<double()>& loss) {
  constexpr double kStep = 1e-5;
  Doubles gradient;
  for (double& value : values) {
    const double middle = value;
    value = middle + kStep;
    const double above = loss();
    value = middle - kStep;
    const double below = loss();
    value = middle;
    gradient.push_back((above - below) / (2 * kStep));
  }
  return gradient;
}

/// Every element within `bound` times the largest magnitude expected anywhere: elements of a gradient cancel,
/// so that their errors follow the size of the terms, not of the result.
inline void expect_close(const std::vector<float>& found, const Doubles& expected, double bound,
                         const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_LE(std::fabs(found[i] - expected[i]), bound * largest)
        << what << "[" << i << "]: " << found[i] << ", expected " << expected[i];
  }
}

}  // namespace quaver::testing
