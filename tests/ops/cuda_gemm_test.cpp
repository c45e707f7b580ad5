/// The CUDA backend's products against the reference's, in the emulation and on a device where there is one.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/contracts.h"
#include "ops/pointwise_support.h"
#include "quaver/fp8_format.h"
#include "support/emulated_backend.h"

namespace quaver::testing {
namespace {

struct ProductCase {
  Gemm kind;
  DType a, b, out;
  GemmSize size;
  bool bias, accumulate, strided, transposed_given;
};

void PrintTo(const ProductCase& c, std::ostream* stream) {
  *stream << fmt::format(
      "{} {} x {} -> {}, m {} n {} k {}, bias {}, accumulate {}, strided {}, transposed {}", name_of(c.kind),
      name_of(c.a), name_of(c.b), name_of(c.out), c.size.m, c.size.n, c.size.k, c.bias, c.accumulate,
      c.strided, c.transposed_given);
}

std::vector<ProductCase> product_cases() {
  constexpr std::pair<DType, DType> kTypes[] = {{DType::f32, DType::f32},
                                                {DType::bf16, DType::bf16},
                                                {DType::e4m3, DType::e4m3},
                                                {DType::e5m2, DType::e4m3},
                                                {DType::e4m3, DType::e5m2}};
  const GemmSize sizes[] = {{64, 48, 32}, {1, 1, 1}, {17, 33, 5}, {5, 257, 100}, {128, 16, 49}, {48, 64, 16}};
  std::vector<ProductCase> cases;
  int number = 0;
  for (Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
    for (const auto& [a, b] : kTypes) {
      for (DType out : {DType::f32, DType::bf16}) {
        for (const GemmSize& size : sizes) {
          const bool accumulate = number % 2 == 1;
          for (bool transposed : {false, true}) {
            if (transposed && !is_fp8(a)) continue;
            cases.push_back({kind, a, b, out, size, kind == Gemm::fprop && number % 3 == 0, accumulate,
                             number % 4 < 2, transposed});
          }
          ++number;
        }
      }
    }
  }
  return cases;
}

/// FP8 with one scale, cast by the reference; row-major bytes strided or not, transposed ones given or not.
GemmOperand fp8_operand(const Tensor& values, DType dtype, float scale, bool strided, bool transposed) {
  Backend& host = reference();
  const std::int64_t rows = values.rows(), cols = values.cols();
  Output output;
  const Tensor wide = host.allocate(dtype, {rows, cols + 7});
  output.quantized = {strided ? wide.columns(3, cols) : host.allocate(dtype, {rows, cols}),
                      {},
                      host.allocate(DType::f32, {1})};
  if (transposed) output.quantized.transposed = host.allocate(dtype, {cols, rows});
  output.quantizer.format = dtype;
  output.quantizer.scale = host.allocate(DType::f32, {1});
  host.fill(output.quantizer.scale, scale);
  host.cast(values, output);
  return output.quantized;
}

class CudaGemm : public ::testing::TestWithParam<ProductCase> {
 protected:
  /// A matrix of a type on the host; FP8 with its transposed bytes and a scale.
  static GemmOperand operand(DType dtype, std::int64_t rows, std::int64_t cols, std::uint64_t stream,
                             float scale) {
    const ProductCase& c = GetParam();
    const MatrixCase real{rows, cols, is_fp8(dtype) ? DType::f32 : dtype, c.strided && !is_fp8(dtype)};
    const Tensor values = random_matrix(real, stream);
    return is_fp8(dtype) ? fp8_operand(values, dtype, scale, c.strided, c.transposed_given) : values;
  }

  static Shape shape_of_a() {
    const GemmSize& size = GetParam().size;
    return GetParam().kind == Gemm::wgrad ? Shape{size.k, size.m} : Shape{size.m, size.k};
  }
  static Shape shape_of_b() {
    const GemmSize& size = GetParam().size;
    return GetParam().kind == Gemm::fprop ? Shape{size.n, size.k} : Shape{size.k, size.n};
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, CudaGemm, ::testing::ValuesIn(product_cases()));

TEST_P(CudaGemm, IsNearTheReference) {
  const ProductCase& c = GetParam();
  const GemmOperand a = operand(c.a, shape_of_a()[0], shape_of_a()[1], 1, 40.0f);
  const GemmOperand b = operand(c.b, shape_of_b()[0], shape_of_b()[1], 2, 25.0f);
  const Tensor bias = c.bias ? random_vector(c.size.n, 3) : Tensor();
  const MatrixCase result{c.size.m, c.size.n, c.out, c.strided};
  const auto run = [&](Backend& backend) {
    const Tensor out = random_matrix(result, 4);
    backend.gemm(c.kind, a, b, bias, c.accumulate, out);
    return std::vector{out};
  };
  // Another order of the k terms of about 1: each partial sum of size sqrt(k) is rounded to 24 bits. Hopper's
  // FP8 units keep about 14 bits of the products that they add at once, whatever the accumulation afterwards.
  const float terms = std::sqrt(std::max(1.0f, static_cast<float>(c.size.k)));
  const float error = 0x1p-19f * terms, device_error = is_fp8(c.a) ? 0x1p-9f * terms : error;
  const std::vector<Tensor> expected = run(reference());
  for (const auto& backend : device_backends()) {
    expect_near(host_results(*backend, run)[0], expected[0],
                {0, backend->device() == Device::cuda ? device_error : error}, backend->describe());
  }
  const auto plain = make_emulated_backend(true);
  expect_near(host_results(*plain, run)[0], expected[0], {0, error}, "emulation, plain products");
}

TEST(CudaGemmSpecial, BlocksWithScalesOf1KeepTheBitsOfOneScalePerTensor) {
  const auto in_blocks = make_emulated_backend(false, true, 120), plain = make_emulated_backend();
  const auto result_of = [](Backend& backend, Gemm kind, const GemmSize& size, bool bias) {
    const bool wgrad = kind == Gemm::wgrad, fprop = kind == Gemm::fprop;
    const Tensor a = random_matrix({wgrad ? size.k : size.m, wgrad ? size.m : size.k, DType::f32, false}, 1),
                 b = random_matrix({fprop ? size.n : size.k, fprop ? size.k : size.n, DType::f32, false}, 2);
    return host_results(backend, [&](Backend&) {
      const Tensor out = random_matrix({size.m, size.n, wgrad ? DType::f32 : DType::bf16, false}, 4);
      backend.gemm(kind, fp8_operand(a, fprop ? DType::e4m3 : DType::e5m2, 40, false, false),
                   fp8_operand(b, DType::e4m3, 25, false, false), bias ? random_vector(size.n, 3) : Tensor(),
                   wgrad, out);
      return std::vector{out};
    })[0];
  };
  const std::string kernel = "in blocks of 32 with scales of 1";
  for (const Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
    for (const bool bias : {false, true}) {
      if (bias && kind != Gemm::fprop) continue;
      for (const auto& [size, used] :
           {std::pair{GemmSize{64, 48, 96}, true}, {{20, 33, 64}, true}, {{32, 16, 48}, false}}) {
        const Tensor found = result_of(*in_blocks, kind, size, bias),
                     expected = result_of(*plain, kind, size, bias);
        EXPECT_EQ(bytes_of(found) == bytes_of(expected), true)
            << name_of(kind) << differences(found, expected);
        EXPECT_EQ(in_blocks->last_gemm_kernel().find(kernel) != std::string::npos, used)
            << in_blocks->last_gemm_kernel();
        EXPECT_EQ(plain->last_gemm_kernel().find(kernel), std::string::npos);
      }
    }
  }
}

TEST(CudaGemmSpecial, AnEmptyContractionLeavesBiasAndWhatWasThere) {
  const MatrixCase none{3, 0, DType::bf16, false};
  const Tensor a = random_matrix(none, 1), b = random_matrix({5, 0, DType::bf16, false}, 2);
  const Tensor bias = random_vector(5, 3);
  expect_equals_reference([&](Backend& backend) {
    const Tensor out = random_matrix({3, 5, DType::f32, false}, 4);
    backend.gemm(Gemm::fprop, a, b, bias, true, out);
    return std::vector{out};
  });
}

TEST(CudaFaults, AnIndexOutsideItsTableIsReportedByTheNextCopyToTheHost) {
  for (const auto& backend : device_backends()) {
    const Tensor table = random_vector(12, 1).reshape({4, 3}), out = random_vector(9, 2).reshape({3, 3});
    const Tensor tokens = upload(*backend, std::vector<std::int32_t>{0, 4, -1}, {3});
    backend->embedding(tokens, table, {}, {}, out);
    try {
      finish(*backend);
      FAIL() << "accepted by " << backend->describe();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("row 1"), std::string::npos) << error.what();
    }
    finish(*backend);  // reported once

    const Tensor logits = random_matrix({2, 7, DType::f32, false}, 1), losses = random_vector(2, 1);
    backend->cross_entropy(logits, upload(*backend, std::vector<std::int32_t>{6, 7}, {2}), 1.0f, losses,
                           Output());
    EXPECT_THROW(finish(*backend), Error);
  }
}

TEST(CudaDevice, IsPresent) {
  if (!why_no_cuda().empty()) GTEST_SKIP() << why_no_cuda();
  const auto backend = make_test_backend("cuda");
  EXPECT_EQ(backend->device(), Device::cuda);
  EXPECT_NE(backend->describe().find("sm_"), std::string::npos) << backend->describe();
}

}  // namespace
}  // namespace quaver::testing
