/// Matrix products against sums in double, and the documented order of operations.
#include "quaver/fp8_format.h"
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

constexpr Gemm kKinds[] = {Gemm::fprop, Gemm::dgrad, Gemm::wgrad};

/// Operands as the numbers that they hold, and where a term of the sum stands in them.
struct Product {
  Gemm kind;
  std::int64_t m, n, k;
  std::vector<float> a, b;
  float a_at(std::int64_t row, std::int64_t term) const {
    return kind == Gemm::wgrad ? a[term * m + row] : a[row * k + term];
  }
  float b_at(std::int64_t col, std::int64_t term) const {
    return kind == Gemm::fprop ? b[col * k + term] : b[term * n + col];
  }
  Shape a_shape() const { return kind == Gemm::wgrad ? Shape{k, m} : Shape{m, k}; }
  Shape b_shape() const { return kind == Gemm::fprop ? Shape{n, k} : Shape{k, n}; }
  /// term(row, col) for every element of the result.
  template <typename T, typename F>
  std::vector<T> elements(const F& term) const {
    std::vector<T> result;
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t col = 0; col < n; ++col) result.push_back(term(row, col));
    }
    return result;
  }
};

class GemmOperation : public BackendTest {
 protected:
  /// Finite bytes chosen by `pick(index)`, in columns at an odd offset.
  template <typename F>
  Tensor fp8_matrix(DType format, const Shape& shape, const F& pick) {
    std::vector<std::uint8_t> bytes;
    for (std::int64_t i = 0; i < element_count(shape); ++i)
      bytes.push_back(pick(static_cast<std::uint64_t>(i)));
    const Tensor packed = backend->allocate(format, shape), strided = slice(shape[0], shape[1], format);
    backend->copy_from_host(bytes.data(), packed);
    backend->copy(packed, strided);
    return strided;
  }
  GemmOperand scaled(const Tensor& bytes, float scale_inv) {
    GemmOperand operand(bytes);
    operand.scale_inv = vector({scale_inv});
    return operand;
  }
  std::vector<float> product_of(const Doubles& a, const Doubles& b, DType dtype) {
    const auto k = static_cast<std::int64_t>(a.size());
    const Tensor out = slice(1, 1);
    backend->gemm(Gemm::fprop, matrix(a, 1, k, dtype), matrix(b, 1, k, dtype), {}, false, out);
    return floats(out);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, GemmOperation, every_backend(), backend_name);

// A sum of k terms has an error of at most k * 2^-24 * sum |a b|, to first order; BF16 operands are exact, and
// their products too.
TEST_P(GemmOperation, RealProductsAreNearTheSumInDouble) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (Gemm kind : kKinds) {
      for (std::int64_t k : {1, 33, 257}) {
        Product p{kind, 17, 5, k, {}, {}};
        const Tensor a = matrix(normal_values(17 * k, 1), p.a_shape()[0], p.a_shape()[1], dtype);
        const Tensor b = matrix(normal_values(5 * k, 2), p.b_shape()[0], p.b_shape()[1], dtype);
        p.a = floats(a);
        p.b = floats(b);
        const Tensor out = slice(17, 5);
        backend->gemm(kind, a, b, {}, false, out);
        const std::vector<float> found = floats(out);
        for (std::int64_t row = 0; row < 17; ++row) {
          for (std::int64_t col = 0; col < 5; ++col) {
            double sum = 0, magnitude = 0;
            for (std::int64_t t = 0; t < k; ++t) {
              const double term = static_cast<double>(p.a_at(row, t)) * p.b_at(col, t);
              sum += term;
              magnitude += std::fabs(term);
            }
            ASSERT_NEAR(found[row * 5 + col], sum, static_cast<double>(k) * 0x1p-24 * magnitude)
                << name_of(kind) << " " << name_of(dtype) << " k " << k;
          }
        }
      }
    }
  }
}

// Small integers, scales that are powers of two: every sum is exact in FP32, so the order does not matter.
TEST_P(GemmOperation, Fp8SumsOfSmallIntegersAreExact) {
  const Random random(5, 1);
  for (Gemm kind : kKinds) {
    for (DType format : {DType::e4m3, DType::e5m2}) {
      const DType format_a = kind == Gemm::fprop ? DType::e4m3 : format;
      Product p{kind, 9, 17, 33, {}, {}};
      const auto small = [&](DType type, std::uint64_t offset) {
        return [&random, type, offset](std::uint64_t i) {
          return fp8_encode(type, static_cast<float>(random.below(i + offset, 9)) - 4);
        };
      };
      const Tensor a = fp8_matrix(format_a, p.a_shape(), small(format_a, 0));
      const Tensor b = fp8_matrix(DType::e4m3, p.b_shape(), small(DType::e4m3, 100000));
      p.a = floats(a);
      p.b = floats(b);
      const Tensor out = slice(9, 17);
      backend->gemm(kind, scaled(a, 0.5f), scaled(b, 0.25f), {}, false, out);
      const auto expected = p.elements<float>([&](std::int64_t row, std::int64_t col) {
        double sum = 0;
        for (std::int64_t t = 0; t < p.k; ++t) sum += static_cast<double>(p.a_at(row, t)) * p.b_at(col, t);
        return static_cast<float>(sum / 8);
      });
      EXPECT_EQ(floats(out), expected) << name_of(kind) << " " << name_of(format_a);
    }
  }
}

// Any finite bytes: one FP32 accumulator in ascending order, then scale, bias, old value, each rounded.
TEST_P(GemmOperation, Fp8SumsAndEpiloguesAreRoundedInTheDocumentedOrder) {
  if (GetParam() == "cuda") GTEST_SKIP() << "the matrix units add several products at once";
  const Random random(5, 2);
  // The whole range of a format: most sums are inexact in FP32.
  const auto finite = [&random](DType format, std::uint64_t offset) {
    return [&random, format, offset](std::uint64_t i) {
      const auto byte = static_cast<std::uint8_t>(random.bits(i + offset));
      return std::isfinite(fp8_decode(format, byte)) ? byte : static_cast<std::uint8_t>(byte & 0xBF);
    };
  };
  for (Gemm kind : kKinds) {
    for (DType type : {DType::f32, DType::bf16}) {
      Product p{kind, 5, 18, 65, {}, {}};
      const DType format_a = kind == Gemm::fprop ? DType::e4m3 : DType::e5m2;
      const Tensor a = fp8_matrix(format_a, p.a_shape(), finite(format_a, 0));
      const Tensor b = fp8_matrix(DType::e4m3, p.b_shape(), finite(DType::e4m3, 100000));
      p.a = floats(a);
      p.b = floats(b);
      const Doubles bias = normal_values(18, 3);
      const float scale_a = 0.3f, scale_b = 1.7f;
      const Tensor out = matrix(normal_values(5 * 18, 4), 5, 18, type);
      const std::vector<float> old = floats(out);
      const bool with_bias = kind == Gemm::fprop;
      backend->gemm(kind, scaled(a, scale_a), scaled(b, scale_b), with_bias ? vector(bias) : Tensor(), true,
                    out);
      const auto expected = p.elements<float>([&](std::int64_t row, std::int64_t col) {
        float sum = 0;
        for (std::int64_t t = 0; t < p.k; ++t) sum += p.a_at(row, t) * p.b_at(col, t);
        const float scale = scale_a * scale_b;
        sum *= scale;
        if (with_bias) sum += static_cast<float>(bias[col]);
        sum += old[row * p.n + col];
        return type == DType::f32 ? sum : to_float(to_bf16(sum));
      });
      EXPECT_EQ(floats(out), expected) << name_of(kind) << " " << name_of(type);
    }
  }
}

// 1 is lost beside 2^24 when it comes second, and counts when 2^24 is cancelled first.
TEST_P(GemmOperation, ExactTypesSumInAscendingOrder) {
  if (GetParam() == "cuda") GTEST_SKIP() << "the matrix units add several products at once";
  EXPECT_EQ(product_of({0x1p24, 1, -0x1p24}, {1, 1, 1}, DType::bf16)[0], 0);
  EXPECT_EQ(product_of({0x1p24, -0x1p24, 1}, {1, 1, 1}, DType::bf16)[0], 1);
}

/// The matrix units of GPUs keep denormals, and sum in groups of their own (docs/gpu.md).
bool runs_on_a_gpu(const std::string& backend) {
  return backend == "emulation" || backend == "cuda";
}

TEST_P(GemmOperation, Bf16CountsDenormalOperandsAndSumsAsZero) {
  if (runs_on_a_gpu(GetParam())) GTEST_SKIP() << "GPUs keep denormals";
  EXPECT_EQ(product_of({0x1p-130}, {0x1p100}, DType::bf16)[0], 0) << "operand";
  EXPECT_EQ(product_of({0x1p-70}, {0x1p-70}, DType::bf16)[0], 0) << "product";
  EXPECT_EQ(product_of({0x1p-126, -0x1.8p-126, 1}, {1, 1, 0}, DType::bf16)[0], 0) << "partial sum";
  EXPECT_EQ(product_of({0x1p-126}, {1}, DType::bf16)[0], 0x1p-126f) << "the smallest normal number stays";
}

// A flushed sum keeps its sign; the product of zeros that completes an odd contraction makes -0 a +0.
TEST_P(GemmOperation, AnOddBf16ContractionEndsWithAProductOfZeros) {
  if (runs_on_a_gpu(GetParam())) GTEST_SKIP() << "GPUs keep denormals";
  EXPECT_FALSE(std::signbit(product_of({0x1p-70}, {-0x1p-70}, DType::bf16)[0]));
  EXPECT_TRUE(std::signbit(product_of({0, 0x1p-70}, {0, -0x1p-70}, DType::bf16)[0]));
}

TEST_P(GemmOperation, F32KeepsDenormals) {
  EXPECT_EQ(product_of({0x1p-70}, {0x1p-70}, DType::f32)[0], 0x1p-140f);
}

TEST_P(GemmOperation, RealOperandsHaveNoScale) {
  const Tensor a = matrix({2}, 1, 1), b = matrix({3}, 1, 1), out = slice(1, 1);
  backend->gemm(Gemm::fprop, scaled(a, 10), scaled(b, 10), {}, false, out);
  EXPECT_EQ(floats(out)[0], 6);
}

TEST_P(GemmOperation, SumRowsAddsColumnSums) {
  const Tensor sums = vector({10, 20, 30});
  backend->sum_rows(matrix({1, 2, 3, 4, 5, 6}, 2, 3), sums);
  EXPECT_EQ(floats(sums), (std::vector<float>{15, 27, 39}));
  backend->sum_rows(slice(0, 3), sums);
  EXPECT_EQ(floats(sums), (std::vector<float>{15, 27, 39})) << "no rows";
}

}  // namespace
}  // namespace quaver::testing
