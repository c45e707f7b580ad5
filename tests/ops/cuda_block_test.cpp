/// The recipes `block` and `mxfp8` on the CUDA backend against the reference: casts with equal bits, products within a bound; in the
/// emulation and on a device where there is one that multiplies such blocks.
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
                  kSquares = BlockScaling{}.cast_of(OperandRole::weight, Gemm::fprop),
                  kMxRows = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop),
                  kMxColumns = Mxfp8Scaling{}.cast_of(OperandRole::weight, Gemm::dgrad),
                  kMxGradientRows =
                      Mxfp8Scaling{Fp8Format::hybrid}.cast_of(OperandRole::grad_output, Gemm::dgrad),
                  kMxGradientColumns =
                      Mxfp8Scaling{Fp8Format::hybrid}.cast_of(OperandRole::grad_output, Gemm::wgrad);

/// device_backends() without a GPU whose library has no products of such a cast, and, of MXFP8, one that takes any layout.
std::vector<std::shared_ptr<Backend>> block_backends(const OperandCast& cast = kRows) {
  static const std::shared_ptr<Backend> any_layout = make_emulated_backend(false, true, 100);
  std::vector<std::shared_ptr<Backend>> backends;
  for (const auto& backend : device_backends()) {
    if (backend->why_no_cast(cast).empty()) backends.push_back(backend);
  }
  if (any_layout->why_no_cast(cast).empty()) backends.push_back(any_layout);
  return backends;
}

/// Scales of MXFP8 as the reference has them, from tiles of 128 x 4 as cuBLAS's documentation describes them; what pads them is 0.
Tensor unswizzled(const Tensor& tiles, const OperandCast& cast, std::int64_t rows, std::int64_t cols) {
  const bool by_rows = cast.block_rows == 1;
  const std::int64_t outer = by_rows ? rows : cols, inner = ((by_rows ? cols : rows) + 31) / 32;
  const Tensor scales =
      reference().allocate(DType::e8m0, by_rows ? Shape{outer, inner} : Shape{inner, outer});
  const std::int64_t tiles_across = (inner + 3) / 4;
  EXPECT_EQ(tiles.elements(), (outer + 127) / 128 * tiles_across * 512);
  for (std::int64_t at = 0; at < tiles.elements(); ++at) {
    const std::int64_t tile = at / 512, in_tile = at % 512;
    const std::int64_t i = tile / tiles_across * 128 + in_tile % 16 / 4 * 32 + in_tile / 16,
                       j = tile % tiles_across * 4 + in_tile % 4;
    const std::uint8_t scale = tiles.data<std::uint8_t>()[at];
    if (i < outer && j < inner) {
      scales.data<std::uint8_t>()[by_rows ? i * inner + j : j * outer + i] = scale;
    } else {
      EXPECT_EQ(scale, 0) << "padding at " << at;
    }
  }
  return scales;
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
  const Tensor scales = packed(q.blocks.scale_inv);
  return {packed(q.bytes),      q.blocks.swizzled ? unswizzled(scales, cast, x.rows(), x.cols()) : scales,
          packed(counters),     packed(values),
          packed(q.transposed), packed(q.blocks.transposed)};
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
        for (const OperandCast& cast :
             {kRows, kColumns, kSquares, kMxRows, kMxColumns, kMxGradientRows, kMxGradientColumns}) {
          const CastResult expected = cast_on(reference(), x, cast);
          for (const auto& backend : block_backends(cast)) {
            const std::string what = fmt::format("{}: {} x {} {}{} to {} in {} x {}", backend->describe(),
                                                 rows, cols, name_of(type), strided ? " strided" : "",
                                                 name_of(cast.format), cast.block_rows, cast.block_cols);
            const CastResult found = cast_on(*backend, x, cast);
            const auto expect_equal = [&](const Tensor& a, const Tensor& b, const char* part) {
              EXPECT_EQ(bytes_of(a) == bytes_of(b), true) << what << ", " << part << differences(a, b);
            };
            // What no product reads is not written.
            const bool transposed_alone = backend->needs_transposed_fp8() && cast.block_cols == 1;
            ASSERT_EQ(found.bytes.defined(), !transposed_alone) << what;
            if (found.bytes) expect_equal(found.bytes, expected.bytes, "bytes");
            expect_equal(found.scales, expected.scales, "scales");
            expect_equal(found.counters, expected.counters, "counters");
            expect_equal(found.values, expected.values, "dequantised");
            // What a product along rows reads, and what one down columns reads.
            ASSERT_EQ(found.transposed.defined(), cast.block_rows > 1 && backend->needs_transposed_fp8())
                << what;
            ASSERT_EQ(found.transposed_scales.defined(), cast.block_cols == 128) << what;
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

void expect_two_casts_in_one_read(Backend& backend, const Tensor& x, const OperandCast& rows,
                                  const OperandCast& columns) {
  const auto parts = [](const QuantizedTensor& q) {
    std::vector<Tensor> all{q.blocks.scale_inv};
    for (const Tensor& part : {q.bytes, q.transposed, q.blocks.transposed}) {
      if (part) all.push_back(part);
    }
    return all;
  };
  // All parts of both casts, and the counters of both.
  const auto run = [&](bool at_once) {
    return host_results(backend, [&](Backend&) {
      const QuantizedTensor first = allocate_quantized(backend, rows, x.rows(), x.cols()),
                            second = allocate_quantized(backend, columns, x.rows(), x.cols());
      const Tensor counters = backend.allocate(DType::i64, {kCastCounters});
      backend.fill(counters, 3);
      if (at_once) {
        backend.quantize_both(x, {rows, {}, first}, {columns, {}, second}, counters);
      } else {
        backend.quantize(x, rows, {}, counters, first);
        backend.quantize(x, columns, {}, counters, second);
      }
      std::vector<Tensor> all = parts(first);
      for (const Tensor& part : parts(second)) all.push_back(part);
      all.push_back(counters);
      return all;
    });
  };
  const std::vector<Tensor> found = run(true), expected = run(false);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(bytes_of(found[i]) == bytes_of(expected[i]), true) << i << differences(found[i], expected[i]);
}

TEST(CudaBlockCast, TwoCastsInOneReadAreThoseOfTwoReads) {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{9, 140}, {130, 47}, {144, 264}}) {
    const Tensor x = numbers({rows, cols, DType::bf16, false}, 5);
    if (!suits_devices({x})) continue;
    for (const auto& [first, second] :
         {std::pair(kRows, kColumns), {kMxRows, kMxColumns}, {kMxGradientRows, kMxGradientColumns}}) {
      for (const auto& backend : block_backends(first))
        expect_two_casts_in_one_read(*backend, x, first, second);
    }
  }
}

struct BlockProduct {
  Recipe recipe;
  Gemm kind;
  GemmSize size;
  DType out;
  bool bias, accumulate;
};

std::vector<BlockProduct> block_products() {
  std::vector<BlockProduct> cases;
  int number = 0;
  const auto add = [&](const Recipe& recipe, const std::vector<GemmSize>& sizes) {
    for (const Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
      for (const GemmSize& size : sizes) {
        for (const DType out : {DType::f32, DType::bf16}) {
          cases.push_back({recipe, kind, size, out, kind == Gemm::fprop && number % 3 == 0, number % 2 == 1});
          ++number;
        }
        ++number;
      }
    }
  };
  add(BlockScaling{},
      {{64, 48, 128}, {128, 256, 384}, {48, 64, 192}, {8, 7, 160}, {19, 35, 21}, {130, 257, 300}});
  add(Mxfp8Scaling{}, {{64, 48, 128}, {48, 64, 96}, {8, 7, 160}, {130, 19, 300}});
  add(Mxfp8Scaling{Fp8Format::hybrid}, {{32, 48, 64}, {19, 35, 21}});
  return cases;
}

void PrintTo(const BlockProduct& c, std::ostream* stream) {
  *stream << fmt::format("{} {} -> {}, m {} n {} k {}, bias {}, accumulate {}", describe(c.recipe),
                         name_of(c.kind), name_of(c.out), c.size.m, c.size.n, c.size.k, c.bias, c.accumulate);
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
                       -static_cast<int>((m / 5 + n / 32) % 7)));
    }
    return x;
  }
  static GemmOperand cast(Backend& backend, const Tensor& x, OperandRole role) {
    const OperandCast how = cast_of(GetParam().recipe, role, GetParam().kind);
    const QuantizedTensor q = allocate_quantized(backend, how, x.rows(), x.cols());
    backend.quantize(x, how, {}, {}, q);
    return q;
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, CudaBlockGemm, ::testing::ValuesIn(block_products()));

TEST_P(CudaBlockGemm, IsNearTheReferenceAndRunsInTheLibrary) {
  const auto& [recipe, kind, size, out, has_bias, accumulate] = GetParam();
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
  const char* const scales = !std::holds_alternative<BlockScaling>(recipe) ? "scales of 1 x 32 and 1 x 32"
                             : kind == Gemm::wgrad                         ? "scales of 1 x 128 and 1 x 128"
                                                   : "scales of 1 x 128 and 128 x 128";
  for (const auto& backend : block_backends(cast_of(recipe, a_role, kind))) {
    const float error = (backend->device() == Device::cuda ? 0x1p-9f : 0x1p-19f) * terms;
    expect_near(host_results(*backend, run)[0], expected[0], {0, error}, backend->describe());
    const std::string kernel = backend->last_gemm_kernel();
    EXPECT_NE(kernel.find(scales), std::string::npos) << kernel;
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

TEST(CudaBlockGemmSpecial, BlocksOfTwoLengthsAreNothingThatALibraryHas) {
  const Tensor x = random_matrix({64, 256, DType::bf16, false}, 1);
  const auto run = [&](Backend& backend) {
    const auto cast = [&](const OperandCast& how) {
      const QuantizedTensor q = allocate_quantized(backend, how, x.rows(), x.cols());
      backend.quantize(x, how, {}, {}, q);
      return q;
    };
    const Tensor out = reference().allocate(DType::f32, {64, 64});
    backend.gemm(Gemm::fprop, cast(kMxRows), cast(kRows), {}, false, out);
    return std::vector{out};
  };
  if (!suits_devices({x})) return;
  const auto emulated = make_emulated_backend();
  // Sums of 256 products of normal numbers in another order.
  expect_near(host_results(*emulated, run)[0], run(reference())[0], {0, 0x1p-15f}, "emulation");
  EXPECT_EQ(emulated->last_gemm_kernel(), "plain, one thread an element");
}

TEST(CudaBlockCast, ChipsWithoutTheScaleModeRefuse) {
  for (const auto& [chip, mx, block] :
       {std::tuple{89, false, false}, {90, false, true}, {100, true, false}, {120, true, false}}) {
    const auto backend = make_emulated_backend(false, true, chip);
    for (const auto& [cast, there] : {std::pair(kMxRows, mx), {kMxGradientColumns, mx}, {kRows, block}}) {
      const std::string why = backend->why_no_cast(cast);
      EXPECT_EQ(why.empty(), there) << chip;
      EXPECT_EQ(contains(why, fmt::format("this GPU is sm_{}", chip)), !there) << why;
    }
  }
}

TEST(CudaBlockCast, OtherCastsAreRefusedWithTheReason) {
  for (const auto& backend : block_backends()) {
    const OperandCast fp4 = Nvfp4Scaling{}.cast_of(OperandRole::input, Gemm::fprop);
    EXPECT_TRUE(contains(backend->why_no_cast(fp4), "not e2m1 in blocks of 1 x 16"))
        << backend->why_no_cast(fp4);
    const Tensor x = random_matrix({2, 64, DType::bf16, false}, 1);
    const QuantizedTensor q = allocate_quantized(*backend, fp4, 2, 64);
    EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { backend->quantize(x, fp4, {}, {}, q); }),
                         "does not make this cast"));
    OperandCast wide = kMxRows;
    wide.block_rows = 3;
    EXPECT_TRUE(contains(backend->why_no_cast(wide), "not e4m3 in blocks of 3 x 32"));
    wide = kMxRows;
    wide.stochastic = true;
    EXPECT_TRUE(contains(backend->why_no_cast(wide), "at random"));
    EXPECT_EQ(backend->why_no_cast(CurrentScaling{}.cast_of(OperandRole::input, Gemm::fprop)), "");
  }
  for (const char* name : {"reference", "cpu"})
    EXPECT_EQ(make_backend(name, 1)->why_no_cast(Nvfp4Scaling{}.cast_of(OperandRole::input, Gemm::fprop)),
              "");
}

}  // namespace
}  // namespace quaver::testing
