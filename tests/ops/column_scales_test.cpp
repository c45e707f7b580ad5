/// Powers of two that columns are divided by.
#include "ops/pointwise_support.h"
#include "ops/reference/reference_backend.h"
#include "support/errors.h"

namespace quaver::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Floats = std::vector<float>;

/// Of a matrix with these rows, on the reference. The inverses are checked.
Floats scales_of(const std::vector<Floats>& rows, std::int64_t cols) {
  Floats values;
  for (const Floats& row : rows) values.insert(values.end(), row.begin(), row.end());
  const Tensor x = upload(reference(), values, {static_cast<std::int64_t>(rows.size()), cols});
  const Tensor scale = reference().allocate(DType::f32, {cols}),
               inverse = reference().allocate(DType::f32, {cols});
  reference().column_scales(x, scale, inverse);
  const Floats scales = download(reference(), scale), inverses = download(reference(), inverse);
  for (std::size_t n = 0; n < scales.size(); ++n) EXPECT_EQ(inverses[n], 1 / scales[n]);
  return scales;
}

TEST(ColumnScales, HalveTheBinadesByHand) {
  // Exponents 0, 10, 5: half way to 10, rounded down.
  EXPECT_EQ(scales_of({{1, -1500, 32}, {-1.9f, 1, 63}}, 3), Floats({0x1p5f, 0x1p10f, 0x1p7f}));
  // 3, 2 (the largest number below 8), 0.
  EXPECT_EQ(scales_of({{8, std::nextafter(8.0f, 0.0f), 1}}, 3), Floats({8, 4, 2}));
  // -3, -4: negative ones round down too.
  EXPECT_EQ(scales_of({{0.125f, -0.1f}}, 2), Floats({0x1p-3f, 0x1p-4f}));
  // At most 2^10 apart.
  EXPECT_EQ(scales_of({{1, 0x1p-19f, 0x1p-20f, 0x1p-21f, 1e-45f}}, 5),
            Floats({1, 0x1p-10f, 0x1p-10f, 0x1p-10f, 0x1p-10f}));
  // Zeros, infinities and NaN say nothing about their columns: as the largest.
  EXPECT_EQ(scales_of({{0, 4, kInfinity, std::nanf(""), 1}, {-0.0f, 5, 1, std::nanf(""), std::nanf("")}}, 5),
            Floats({4, 4, 4, 4, 2}));
  EXPECT_EQ(scales_of({{0, kInfinity}}, 2), Floats({1, 1}));
  EXPECT_EQ(scales_of({}, 2), Floats({1, 1})) << "no rows";
  // The largest is limited.
  EXPECT_EQ(scales_of({{1e30f, 0x1p32f, 0x1p31f}}, 3), Floats({0x1p32f, 0x1p32f, 0x1p31f}));
  EXPECT_EQ(scales_of({{0x1p-50f, 0}}, 2), Floats({0x1p-41f, 0x1p-32f}));
}

class ColumnScalesSizes : public ::testing::TestWithParam<MatrixCase> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ColumnScalesSizes, ::testing::ValuesIn(matrix_cases()));

TEST_P(ColumnScalesSizes, OfEveryBackendEqualTheReference) {
  const std::int64_t n = GetParam().cols;
  Tensor with_infinities = random_matrix(GetParam(), 5);
  set(with_infinities, 0, n - 1, kInfinity);
  set(with_infinities, GetParam().rows - 1, n / 2, std::nanf(""));
  for (const Tensor& x : {special_matrix(GetParam(), 1), random_matrix(GetParam(), 2, 1e-3f), with_infinities,
                          random_matrix(GetParam(), 6, 1e-42f)}) {
    expect_equals_reference([&](Backend& backend) {
      const Tensor scale = reference().allocate(DType::f32, {n}),
                   inverse = reference().allocate(DType::f32, {n});
      backend.column_scales(x, scale, inverse);
      return std::vector{scale, inverse};
    });
  }
}

TEST_P(ColumnScalesSizes, ScaledColumnsOfEveryBackendEqualTheReference) {
  const std::int64_t n = GetParam().cols;
  const Tensor x = special_matrix(GetParam(), 3);
  const Tensor factors = random_matrix({1, n, DType::f32, false}, 4, 3.0f).reshape({n});
  expect_equals_reference([&](Backend& backend) {
    const Tensor out = empty_matrix(GetParam()), in_place = copy_of(x);
    backend.scale_columns(x, factors, out);
    backend.scale_columns(in_place, factors, in_place);
    return std::vector{out, in_place};
  });
}

TEST(ColumnScales, AreMultipliedAsTheFormulaSays) {
  const Floats x = {1, 2, -3, 4, 5, 6}, factors = {2, 0.5f, -1};
  const Tensor out = reference().allocate(DType::f32, {2, 3});
  reference().scale_columns(upload(reference(), x, {2, 3}), upload(reference(), factors, {3}), out);
  EXPECT_EQ(download(reference(), out), Floats({2, 1, 3, 8, 2.5f, -6}));
}

/// As a backend of a program's own might be.
class WithoutColumnScales : public ReferenceBackend {
 public:
  bool has_column_scales() const override { return Backend::has_column_scales(); }
  void column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) override {
    Backend::column_scales(x, scale, inverse);
  }
  void scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) override {
    Backend::scale_columns(x, factors, out);
  }
};

TEST(ColumnScales, AreRefusedWhereThereAreNone) {
  WithoutColumnScales backend;
  EXPECT_FALSE(backend.has_column_scales());
  const Tensor x = backend.allocate(DType::f32, {2, 3}), factors = backend.allocate(DType::f32, {3});
  for (const auto& call :
       std::vector<std::function<void()>>{[&] { backend.scale_columns(x, factors, x); },
                                          [&] { backend.column_scales(x, factors, factors); }}) {
    const std::string message = error_message(ErrorKind::usage, call);
    EXPECT_TRUE(contains(message, "the backend reference does not have it")) << message;
  }
}

}  // namespace
}  // namespace quaver::testing
