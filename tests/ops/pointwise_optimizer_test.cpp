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

/// One matrix with copies, beside others without.
class AdamWCopies : public ::testing::TestWithParam<MatrixCase> {
 protected:
  struct Copies {
    bool fp8 = true, bf16 = false;
    DType format = DType::e4m3;
  };

  static constexpr std::int64_t kOther = 37;

  static AdamWTensor tensor(const MatrixCase& c) {
    const MatrixCase plain{c.rows, c.cols, DType::f32, false};
    const Tensor v = reference().allocate(DType::f32, {c.rows, c.cols});
    for (std::int64_t i = 0; i < v.elements(); ++i) v.data<float>()[i] = 1e-4f * static_cast<float>(i % 97);
    return {special_matrix(plain, 1), special_matrix(plain, 2), random_matrix(plain, 3), v};
  }
  static WeightCopies copies(const MatrixCase& c, const Copies& which) {
    WeightCopies result;
    if (which.fp8) {
      const Output output = full_output(c, c.cols, which.format, 37.25f, false);
      result = {{}, output.quantized, output.quantizer};
    }
    if (which.bf16) result.bf16 = reference().allocate(DType::bf16, {c.rows, c.cols});
    return result;
  }
  static std::vector<Tensor> tensors_of(const AdamWTensor& t) {
    std::vector<Tensor> all{t.value, t.m, t.v};
    if (t.copies.bf16) all.push_back(t.copies.bf16);
    if (!t.copies.fp8.defined()) return all;
    const auto cast = testing::tensors_of(Output{{}, t.copies.fp8, t.copies.quantizer});
    all.insert(all.end(), cast.begin(), cast.end());
    return all;
  }
  static AdamWTensor other(std::uint64_t stream) {
    return {random_vector(kOther, stream), random_vector(kOther, stream + 1),
            random_vector(kOther, stream + 2), random_vector(kOther, stream + 3, 8.0f), false};
  }
  /// Value, moments and copies after one step.
  static std::vector<Tensor> step(Backend& backend, const Copies& which, float norm = 7.5f) {
    AdamWTensor first = tensor(GetParam()), second = tensor(GetParam()), plain = other(20);
    first.copies = copies(GetParam(), which);
    second.copies = copies(GetParam(), which);
    second.decays = false;
    backend.adamw({.lr = 3e-3f, .weight_decay = 0.1f, .step = 3}, upload(backend, std::vector{norm}, {1}),
                  1.0f, std::vector{first, plain, second});
    std::vector<Tensor> all = tensors_of(first);
    for (const AdamWTensor* t : {&plain, &second}) {
      const auto more = tensors_of(*t);
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }
};
INSTANTIATE_TEST_SUITE_P(
    Shapes, AdamWCopies,
    ::testing::Values(MatrixCase{1, 1, DType::f32, false}, MatrixCase{5, 33, DType::f32, true},
                      MatrixCase{128, 64, DType::f32, false}, MatrixCase{132, 72, DType::f32, false},
                      MatrixCase{131, 72, DType::f32, false}, MatrixCase{259, 257, DType::f32, false}));

// Casts and conversions are exact functions of the new value, which every backend agrees on: equality.
TEST_P(AdamWCopies, EqualTheReference) {
  for (const Copies& which :
       {Copies{}, Copies{.bf16 = true}, Copies{.fp8 = false, .bf16 = true}, Copies{.format = DType::e5m2}})
    expect_equals_reference([&](Backend& backend) { return step(backend, which); });
}

TEST_P(AdamWCopies, OfTheReferenceAreTheSeparateCast) {
  AdamWTensor with = tensor(GetParam()), without = tensor(GetParam());
  with.copies = copies(GetParam(), {.bf16 = true});
  const Tensor norm = upload(reference(), std::vector{0.5f}, {1});
  for (const AdamWTensor* one : {&with, &without})
    reference().adamw({.lr = 0.01f}, norm, 0, std::span(one, 1));
  without.copies = copies(GetParam(), {.bf16 = true});
  reference().cast(without.value, {{}, without.copies.fp8, without.copies.quantizer});
  reference().convert(without.value, without.copies.bf16);
  const auto found = tensors_of(with), expected = tensors_of(without);
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(bytes_of(found[i]) == bytes_of(expected[i]), true) << i;
}

TEST_P(AdamWCopies, AreNotWrittenWhenTheNormIsNotFinite) {
  const auto run = [&](Backend& backend, AdamWTensor one) {
    backend.adamw({.lr = 1}, upload(backend, std::vector{std::nanf("")}, {1}), 1, std::span(&one, 1));
    finish(backend);
  };
  const auto expect_untouched = [&](Backend& backend) {
    AdamWTensor one = tensor(GetParam());
    one.copies = copies(GetParam(), {.bf16 = true});
    std::vector<std::string> before;
    for (const Tensor& t : tensors_of(one)) {
      if (t.dtype() != DType::f32 && t.dtype() != DType::i64) std::memset(t.raw(), 0x35, t.elements());
      before.push_back(bytes_of(t));
    }
    run(backend, one);
    const auto after = tensors_of(one);
    for (std::size_t i = 0; i < after.size(); ++i) EXPECT_EQ(bytes_of(after[i]) == before[i], true) << i;
  };
  expect_untouched(reference());
  for (const auto& backend : cpu_backends()) expect_untouched(*backend);
}

}  // namespace
}  // namespace quaver::testing
