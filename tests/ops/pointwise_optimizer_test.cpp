#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

constexpr std::int64_t kSizes[] = {1, 3, 15, 16, 17, 257, 40001};

TEST(PointwiseGlobalNorm, IsNearTheReference) {
  std::vector<Tensor> tensors;
  for (std::int64_t size : kSizes) tensors.push_back(random_vector(size, size));
  // Sums in double differ far below FP32's last place: at most one rounding to a neighbour.
  expect_near_reference(
      [&](Backend& backend) {
        const Tensor all = backend.allocate(DType::f32, {1}), none = backend.allocate(DType::f32, {1});
        backend.global_norm(tensors, all);
        backend.global_norm({}, none);
        return std::vector{all, none};
      },
      {1.2e-7f, 0.0f});
}

TEST(PointwiseGlobalNorm, DoesNotOverflowWhereTheResultFits) {
  const Tensor large = upload(reference(), std::vector<float>{3e30f, -4e30f}, {2});
  const Tensor result = reference().allocate(DType::f32, {1});
  cpu_backends().back()->global_norm(std::vector{large}, result);
  EXPECT_FLOAT_EQ(download(reference(), result)[0], 5e30f);
}

class PointwiseAdamW : public ::testing::TestWithParam<std::int64_t> {
 protected:
  /// value, m and v after one step.
  static std::vector<Tensor> step(Backend& backend, const AdamWStep& how, float norm, float max_norm) {
    const Tensor gradient = random_vector(GetParam(), 1), value = random_vector(GetParam(), 2);
    const Tensor m = random_vector(GetParam(), 3), v = random_vector(GetParam(), 4, 8.0f);
    const Tensor norm_tensor = upload(backend, std::vector{norm}, {1});
    // Two more tensors in the same call: one of another size, and one that does not decay.
    const std::int64_t other = GetParam() / 3 + 1;
    const AdamWTensor second{random_vector(other, 5), random_vector(other, 6), random_vector(other, 7),
                             random_vector(other, 8, 8.0f)};
    const AdamWTensor third{random_vector(other, 5), random_vector(other, 6), random_vector(other, 7),
                            random_vector(other, 8, 8.0f), false};
    backend.adamw(how, norm_tensor, max_norm, std::vector{AdamWTensor{gradient, value, m, v}, second, third});
    return {value, m, v, second.value, second.m, second.v, third.value, third.m, third.v};
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseAdamW, ::testing::ValuesIn(kSizes));

// The same IEEE operations in the same order: equality.
TEST_P(PointwiseAdamW, EqualsTheReference) {
  for (std::int64_t count : {1, 2, 1000}) {
    for (float max_norm : {0.0f, 1.0f, 100.0f}) {
      const AdamWStep how{.lr = 3e-3f, .weight_decay = 0.1f, .step = count};
      expect_equals_reference([&](Backend& backend) { return step(backend, how, 7.5f, max_norm); });
    }
  }
}

TEST_P(PointwiseAdamW, WritesNothingWhenTheNormIsNotFinite) {
  for (float norm : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const std::vector<Tensor> after = step(*cpu_backends().back(), {.lr = 1.0f}, norm, 1.0f);
    EXPECT_EQ(bytes_of(after[0]) == bytes_of(random_vector(GetParam(), 2)), true);
    EXPECT_EQ(bytes_of(after[1]) == bytes_of(random_vector(GetParam(), 3)), true);
    EXPECT_EQ(bytes_of(after[2]) == bytes_of(random_vector(GetParam(), 4, 8.0f)), true);
  }
}

}  // namespace
}  // namespace quaver::testing
