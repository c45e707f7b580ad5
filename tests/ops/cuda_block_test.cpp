/// The recipe `block` on the CUDA backend against the reference: casts with equal bits, products within a bound; in the emulation and on a
/// device where there is one that multiplies blocks.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/contracts.h"
#include "ops/pointwise_support.h"
#include "support/emulated_backend.h"
#include "support/errors.h"

namespace quaver::testing {
namespace {

const OperandCast kRows = BlockScaling{}.cast_of(OperandRole::input, Gemm::fprop),
                  kColumns = BlockScaling{}.cast_of(OperandRole::input, Gemm::wgrad),
                  kSquares = BlockScaling{}.cast_of(OperandRole::weight, Gemm::fprop);

/// device_backends() without a GPU whose library has no such products.
std::vector<std::shared_ptr<Backend>> block_backends() {
  std::vector<std::shared_ptr<Backend>> backends;
  for (const auto& backend : device_backends()) {
    if (backend->why_no_cast(kRows).empty()) backends.push_back(backend);
  }
  return backends;
}

/// Numbers of 40 binades, with what is special among them, a block of zeros, and one of denormals.
Tensor numbers(const MatrixCase& c, std::uint64_t stream) {
  const Tensor matrix = special_matrix(c, stream), sizes = random_matrix(c, stream + 1);
  const std::vector<float> values = download(reference(), matrix), exponents = download(reference(), sizes);
  for (std::int64_t m = 0; m < c.rows; ++m) {
    for (std::int64_t n = 0; n < c.cols; ++n) {
      const auto at = static_cast<std::size_t>(m * c.cols + n);
      float value = std::ldexp(values[at], static_cast<int>(5 * exponents[at]));
      if (m < 128 && n >= 128 && n < 256) value = 0;
      if (m >= 128 && n < 128) value = std::ldexp(exponents[at], -135);
      set(matrix, m, n, value);
    }
  }
  return matrix;
}

struct CastResult {
  Tensor bytes, scales, counters, values;
  Tensor transposed, transposed_scales;  ///< absent where the backend made none
};

CastResult cast_on(Backend& backend, const Tensor& x, const OperandCast& cast) {
  const QuantizedTensor q = allocate_quantized(backend, cast, x.rows(), x.cols());
  const Tensor counters = backend.allocate(DType::i64, {kCastCounters}),
               values = backend.allocate(DType::bf16, x.shape());
  backend.fill(counters, 3);
  backend.quantize(x, cast, {}, counters, q);
  backend.dequantize(q, values);
  const auto packed = [&](const Tensor& tensor) {
    return tensor ? host_results(backend, [&](Backend&) { return std::vector{tensor}; })[0] : Tensor();
  };
  return {packed(q.bytes), packed(q.blocks.scale_inv), packed(counters),
          packed(values),  packed(q.transposed),       packed(q.blocks.transposed)};
}

template <typename T>
Tensor transpose(const Tensor& x) {
  const Tensor result = reference().allocate(x.dtype(), {x.cols(), x.rows()});
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n)
      result.data<T>()[n * x.rows() + m] = x.data<T>()[m * x.row_stride() + n];
  }
  return result;
}

TEST(CudaBlockCast, HasTheBitsOfTheReference) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                   {9, 140},
                                   {17, 523},
                                   {130, 47},
                                   {128, 128},
                                   {144, 264},
                                   {259, 136}}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const bool strided : {false, true}) {
        const Tensor x = numbers({rows, cols, type, strided}, static_cast<std::uint64_t>(rows));
        if (!suits_devices({x})) continue;
        for (const OperandCast& cast : {kRows, kColumns, kSquares}) {
          const CastResult expected = cast_on(reference(), x, cast);
          for (const auto& backend : block_backends()) {
            const std::string what =
                fmt::format("{}: {} x {} {}{} in {} x {}", backend->describe(), rows, cols, name_of(type),
                            strided ? " strided" : "", cast.block_rows, cast.block_cols);
            const CastResult found = cast_on(*backend, x, cast);
            const auto expect_equal = [&](const Tensor& a, const Tensor& b, const char* part) {
              EXPECT_EQ(bytes_of(a) == bytes_of(b), true) << what << ", " << part << differences(a, b);
            };
            expect_equal(found.bytes, expected.bytes, "bytes");
            expect_equal(found.scales, expected.scales, "scales");
            expect_equal(found.counters, expected.counters, "counters");
            expect_equal(found.values, expected.values, "dequantised");
            // What a product along rows reads, and what one down columns reads.
            ASSERT_EQ(found.transposed.defined(), cast.block_rows > 1) << what;
            ASSERT_EQ(found.transposed_scales.defined(), cast.block_cols > 1) << what;
            if (found.transposed)
              expect_equal(found.transposed, transpose<std::uint8_t>(expected.bytes), "transposed");
            if (found.transposed_scales)
              expect_equal(found.transposed_scales, transpose<float>(expected.scales), "transposed scales");
          }
        }
      }
    }
  }
}

TEST(CudaBlockCast, TwoCastsInOneReadAreThoseOfTwoReads) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{9, 140}, {130, 47}, {144, 264}}) {
    const Tensor x = numbers({rows, cols, DType::bf16, false}, 5);
    if (!suits_devices({x})) continue;
    for (const auto& backend : block_backends()) {
      const QuantizedTensor first = allocate_quantized(*backend, kRows, rows, cols),
                            second = allocate_quantized(*backend, kColumns, rows, cols);
      const Tensor counters = backend->allocate(DType::i64, {kCastCounters});
      backend->fill(counters, 3);
      backend->quantize_both(x, {kRows, {}, first}, {kColumns, {}, second}, counters);
      const auto found = host_results(*backend, [&](Backend&) {
        return std::vector{first.bytes,  first.blocks.scale_inv, first.blocks.transposed,
                           second.bytes, second.transposed,      second.blocks.scale_inv,
                           counters};
      });
      const CastResult by_rows = cast_on(*backend, x, kRows), by_columns = cast_on(*backend, x, kColumns);
      const std::vector expected{by_rows.bytes,    by_rows.scales,        by_rows.transposed_scales,
                                 by_columns.bytes, by_columns.transposed, by_columns.scales};
      for (std::size_t i = 0; i < expected.size(); ++i)
        EXPECT_EQ(bytes_of(found[i]) == bytes_of(expected[i]), true)
            << i << differences(found[i], expected[i]);
      for (int i = 0; i < kCastCounters; ++i) {
        EXPECT_EQ(found.back().data<std::int64_t>()[i],
                  by_rows.counters.data<std::int64_t>()[i] + by_columns.counters.data<std::int64_t>()[i] - 3);
      }
    }
  }
}

struct BlockProduct {
  Gemm kind;
  GemmSize size;
  DType out;
  bool bias, accumulate;
};

std::vector<BlockProduct> block_products() {
  std::vector<BlockProduct> cases;
  int number = 0;
  for (const Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
    for (const GemmSize& size : {GemmSize{64, 48, 128},
                                 {128, 256, 384},
                                 {48, 64, 192},
                                 {8, 7, 160},
                                 {19, 35, 21},
                                 {130, 257, 300}}) {
      for (const DType out : {DType::f32, DType::bf16}) {
        cases.push_back({kind, size, out, kind == Gemm::fprop && number % 3 == 0, number % 2 == 1});
        ++number;
      }
      ++number;
    }
  }
  return cases;
}

void PrintTo(const BlockProduct& c, std::ostream* stream) {
  *stream << fmt::format("{} -> {}, m {} n {} k {}, bias {}, accumulate {}", name_of(c.kind), name_of(c.out),
                         c.size.m, c.size.n, c.size.k, c.bias, c.accumulate);
}

class CudaBlockGemm : public ::testing::TestWithParam<BlockProduct> {
 protected:
  /// Rows of the operand differ in size by up to 2^6, so that a scale taken from a neighbour shows.
  static Tensor operand(std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
    const Tensor x = random_matrix({rows, cols, DType::bf16, false}, stream);
    const std::vector<float> values = download(reference(), x);
    for (std::int64_t m = 0; m < rows; ++m) {
      for (std::int64_t n = 0; n < cols; ++n)
        set(x, m, n,
            std::ldexp(values[static_cast<std::size_t>(m * cols + n)],
                       -static_cast<int>((m / 5 + n / 128) % 7)));
    }
    return x;
  }
  static GemmOperand cast(Backend& backend, const Tensor& x, OperandRole role) {
    const OperandCast how = BlockScaling{}.cast_of(role, GetParam().kind);
    const QuantizedTensor q = allocate_quantized(backend, how, x.rows(), x.cols());
    backend.quantize(x, how, {}, {}, q);
    return q;
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, CudaBlockGemm, ::testing::ValuesIn(block_products()));

TEST_P(CudaBlockGemm, IsNearTheReferenceAndRunsInTheLibrary) {
  const auto& [kind, size, out, has_bias, accumulate] = GetParam();
  const Tensor a = kind == Gemm::wgrad ? operand(size.k, size.m, 1) : operand(size.m, size.k, 1),
               b = kind == Gemm::fprop ? operand(size.n, size.k, 2) : operand(size.k, size.n, 2);
  const Tensor bias = has_bias ? random_vector(size.n, 3) : Tensor();
  const auto [a_role, b_role] = operands_of(kind);
  const auto run = [&](Backend& backend) {
    const Tensor result = random_matrix({size.m, size.n, out, false}, 4);
    backend.gemm(kind, cast(backend, a, a_role), cast(backend, b, b_role), bias, accumulate, result);
    return std::vector{result};
  };
  // As for products with one scale (cuda_gemm_test.cpp): terms of at most about 1 in another order; Hopper's FP8 units keep about 14 bits of the
  // products that they add at once, here within a block.
  const float terms = std::sqrt(static_cast<float>(size.k));
  const std::vector<Tensor> expected = run(reference());
  if (!suits_devices({a, b, expected[0]})) return;
  for (const auto& backend : block_backends()) {
    const float error = (backend->device() == Device::cuda ? 0x1p-9f : 0x1p-19f) * terms;
    expect_near(host_results(*backend, run)[0], expected[0], {0, error}, backend->describe());
    const std::string kernel = backend->last_gemm_kernel();
    EXPECT_NE(kernel.find(kind == Gemm::wgrad ? "scales of 1 x 128 and 1 x 128"
                                              : "scales of 1 x 128 and 128 x 128"),
              std::string::npos)
        << kernel;
  }
  const auto plain = make_emulated_backend(true);
  expect_near(host_results(*plain, run)[0], expected[0], {0, 0x1p-19f * terms}, "emulation, plain products");
}

TEST(CudaBlockGemmSpecial, BlocksOnBothSidesOfAProductOfAnyShapeAndNoneAcrossTheContraction) {
  const Tensor x = random_matrix({10, 140, DType::bf16, false}, 1);
  const auto cast = [&](Backend& backend, const OperandCast& how) {
    const QuantizedTensor q = allocate_quantized(backend, how, x.rows(), x.cols());
    backend.quantize(x, how, {}, {}, q);
    return q;
  };
  // 128 x 128 on both sides is nothing that the library has.
  const auto squares = [&](Backend& backend) {
    const Tensor out = reference().allocate(DType::f32, {10, 10});
    backend.gemm(Gemm::fprop, cast(backend, kSquares), cast(backend, kSquares), {}, false, out);
    return std::vector{out};
  };
  const std::vector<Tensor> expected = squares(reference());
  for (const auto& backend : block_backends()) {
    expect_near(host_results(*backend, squares)[0], expected[0], {0, 0x1p-15f}, backend->describe());
    const Tensor out = backend->allocate(DType::f32, {140, 140});
    const std::string message = error_message(ErrorKind::usage, [&] {
      backend->gemm(Gemm::wgrad, cast(*backend, kRows), cast(*backend, kColumns), {}, false, out);
    });
    EXPECT_TRUE(contains(message, "wgrad: an operand in blocks of 1 along the contraction and 128 across"))
        << message;
    EXPECT_TRUE(
        contains(error_message(ErrorKind::usage,
                               [&] { backend->gemm(Gemm::fprop, cast(*backend, kRows), x, {}, false, out); }),
                 "cannot multiply"));
  }
}

TEST(CudaBlockCast, OtherCastsAreRefusedWithTheReason) {
  for (const auto& backend : block_backends()) {
    const OperandCast mx = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop);
    EXPECT_TRUE(contains(backend->why_no_cast(mx), "not e4m3 in blocks of 1 x 32"))
        << backend->why_no_cast(mx);
    const Tensor x = random_matrix({2, 64, DType::bf16, false}, 1);
    const QuantizedTensor q = allocate_quantized(*backend, mx, 2, 64);
    EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { backend->quantize(x, mx, {}, {}, q); }),
                         "does not make this cast"));
    EXPECT_EQ(backend->why_no_cast(CurrentScaling{}.cast_of(OperandRole::input, Gemm::fprop)), "");
  }
  for (const char* name : {"reference", "cpu"})
    EXPECT_EQ(make_backend(name, 1)->why_no_cast(Nvfp4Scaling{}.cast_of(OperandRole::input, Gemm::fprop)),
              "");
}

}  // namespace
}  // namespace quaver::testing
