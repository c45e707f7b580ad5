/// The CPU backend with products = fast: in a matrix unit the bits are those of its documented order, at any number of threads;
/// everywhere they are near the exact ones.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "ops/cpu/levels.h"
#include "ops/gemm_support.h"
#include "ops/pointwise_support.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

using namespace testing;

bool has_matrix_unit() {
  return cpu::find_matrix_unit(cpu::choose_level()) != nullptr;
}

Inputs without_signs(const Inputs& inputs) {
  for (const Tensor* tensor : {&inputs.a.values, &inputs.b.values}) {
    for (std::int64_t i = 0; i < tensor->rows(); ++i) {
      for (std::int64_t j = i * tensor->row_stride(); j < i * tensor->row_stride() + tensor->cols(); ++j) {
        if (is_fp8(tensor->dtype())) {
          tensor->data<std::uint8_t>()[j] &= 0x7F;
        } else {
          bf16& value = tensor->data<bf16>()[j];
          value = to_bf16(std::fabs(to_float(value)));
        }
      }
    }
  }
  return inputs;
}

class MatrixUnitTest : public ::testing::Test {
 protected:
  std::shared_ptr<Backend> fast_ = make_backend("cpu", 2, Products::fast);
};

class MatrixUnitBitsTest : public MatrixUnitTest {
 protected:
  void SetUp() override {
    if (!has_matrix_unit())
      GTEST_SKIP()
          << "this processor has no matrix unit (Intel AMX with BF16), or the system does not grant it";
  }
  void expect_documented_bits(const Case& c) { expect_documented_bits(c, inputs_of(*order_, c)); }
  void expect_documented_bits(const Case& c, const Inputs& inputs) {
    const std::vector<std::uint32_t> expected = product(*order_, c, inputs);
    const std::vector<std::uint32_t> found = product(*fast_, c, inputs);
    ASSERT_EQ(found.size(), expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i], expected[i]) << describe(c) << ", row " << i / static_cast<std::size_t>(c.n)
                                       << " column " << i % static_cast<std::size_t>(c.n);
    }
  }

  std::shared_ptr<Backend> order_ = make_backend("reference", 0, Products::fast);
};

TEST_F(MatrixUnitBitsTest, HasTheBitsOfItsOrderForAllKindsTypesAndOddSizes) {
  for_all_kinds_types_and_odd_sizes([&](const Case& c) { expect_documented_bits(c); });
}

// Every end of tiles (16 rows, 16 columns, 32 products), and of panels of two tiles.
TEST_F(MatrixUnitBitsTest, HasTheBitsOfItsOrderAtEveryEndOfTiles) {
  int variant = 0;
  for (std::int64_t m : {5, 15, 16, 17, 31, 32, 33, 49}) {
    for (std::int64_t n : {1, 15, 16, 17, 31, 33, 48}) {
      for (std::int64_t k : {1, 2, 31, 32, 33, 63, 65}) {
        ++variant;
        expect_documented_bits({.kind = kKinds[variant % 3],
                                .a = kExactTypes[variant % 4].a,
                                .b = kExactTypes[variant % 4].b,
                                .out = variant % 2 == 0 ? DType::f32 : DType::bf16,
                                .m = m,
                                .n = n,
                                .k = k,
                                .accumulate = variant % 5 < 2,
                                .values = variant % 7 == 0 ? Values::special : Values::plain});
      }
    }
  }
}

TEST_F(MatrixUnitBitsTest, InfinitiesAndNanStayWhereTheyAre) {
  for (const Types& types : kExactTypes) {
    for (Gemm kind : kKinds) {
      for (DType out : {DType::f32, DType::bf16}) {
        expect_documented_bits({.kind = kind,
                                .a = types.a,
                                .b = types.b,
                                .out = out,
                                .m = 70,
                                .n = 53,
                                .k = 37,
                                .accumulate = out == DType::bf16,
                                .values = Values::special});
      }
    }
  }
}

TEST_F(MatrixUnitBitsTest, DenormalsCountAsZero) {
  for (Gemm kind : kKinds) {
    for (std::int64_t k : {1, 2, 3, 16, 33, 70})
      expect_documented_bits({.kind = kind, .m = 37, .n = 65, .k = k, .values = Values::tiny});
  }
}

// Longer than a block of the contraction, several tiles of rows and groups of columns.
TEST_F(MatrixUnitBitsTest, CarriesSumsAcrossBlocksOfTheContraction) {
  for (const Types& types : {kExactTypes[0], kExactTypes[2]}) {
    expect_documented_bits(
        {.kind = Gemm::wgrad, .a = types.a, .b = types.b, .m = 70, .n = 100, .k = 2111, .accumulate = true});
    expect_documented_bits({.a = types.a, .b = types.b, .m = 300, .n = 290, .k = 33});
    expect_documented_bits(
        {.a = types.a, .b = types.b, .out = DType::bf16, .m = 600, .n = 40, .k = 1025, .bias = true});
  }
}

// Which operand is kept, and whether it is packed in pieces, depends on sizes: few rows, enough rows, and (the last) operands that do
// not stay near. Contractions end within 64 codes, or take several blocks.
TEST_F(MatrixUnitBitsTest, HasTheBitsOfItsOrderHoweverOperandsArePackedAndKept) {
  int variant = 0;
  const auto expect = [&](const Size& size, const Types& types, Gemm kind) {
    ++variant;
    expect_documented_bits({.kind = kind,
                            .a = types.a,
                            .b = types.b,
                            .out = variant % 3 == 0 ? DType::f32 : DType::bf16,
                            .m = size.m,
                            .n = size.n,
                            .k = size.k,
                            .bias = kind == Gemm::fprop && variant % 5 == 0,
                            .accumulate = variant % 7 == 0,
                            .values = variant % 4 == 0 ? Values::special : Values::plain});
  };
  for (const Types& types : {kExactTypes[0], kExactTypes[1], kExactTypes[2]}) {
    for (Gemm kind : kKinds) {
      for (const Size& size : {Size{70, 130, 95}, Size{260, 75, 97}, Size{260, 70, 340}, Size{35, 150, 700}})
        expect(size, types, kind);
    }
  }
  expect({129, 131, 4100}, kExactTypes[2], Gemm::fprop);
  expect({131, 129, 4100}, kExactTypes[2], Gemm::wgrad);
  expect({131, 129, 4100}, kExactTypes[0], Gemm::dgrad);
}

// A line of the output at once, with denormal sums and NaN beside ordinary ones.
TEST_F(MatrixUnitBitsTest, RoundsWholeLinesOfTheOutputAsOthers) {
  for (Values values : {Values::tiny, Values::special}) {
    for (std::int64_t m : {32, 33, 47})
      expect_documented_bits({.out = DType::bf16, .m = m, .n = 96, .k = 40, .values = values});
  }
}

TEST_F(MatrixUnitBitsTest, AnEmptyContractionGivesZeroOrTheOldValues) {
  for (const Types& types : kExactTypes) {
    expect_documented_bits({.a = types.a, .b = types.b, .m = 9, .n = 5, .k = 0, .bias = true});
    expect_documented_bits(
        {.kind = Gemm::dgrad, .a = types.a, .b = types.b, .m = 40, .n = 70, .k = 0, .accumulate = true});
  }
}

TEST_F(MatrixUnitTest, LeavesTheColumnsBesideTheOutputAlone) {
  const Case c{.out = DType::bf16, .m = 9, .n = 21, .k = 5};
  const Inputs inputs = inputs_of(*fast_, c);
  const Tensor wide = fast_->allocate(DType::bf16, {c.m, c.n + 4});
  fast_->fill(wide, 5);
  fast_->gemm(c.kind, inputs.a, inputs.b, {}, false, wide.columns(2, c.n));
  const std::vector<float> values = download(*fast_, wide);
  for (std::int64_t m = 0; m < c.m; ++m) {
    for (std::int64_t n : {std::int64_t{0}, std::int64_t{1}, c.n + 2, c.n + 3})
      EXPECT_EQ(values[static_cast<std::size_t>(m * (c.n + 4) + n)], 5);
  }
}

TEST_F(MatrixUnitTest, ThreadsDoNotChangeBits) {
  for (const Case& c :
       {Case{.kind = Gemm::wgrad, .a = DType::e5m2, .b = DType::e4m3, .m = 130, .n = 557, .k = 300},
        Case{.kind = Gemm::dgrad, .m = 5, .n = 500, .k = 41},
        Case{.a = DType::e4m3, .b = DType::e4m3, .m = 1, .n = 501, .k = 170},
        Case{.a = DType::e4m3, .b = DType::e4m3, .out = DType::bf16, .m = 700, .n = 300, .k = 170}}) {
    const Inputs inputs = inputs_of(*fast_, c);
    const std::vector<std::uint32_t> one = product(*make_backend("cpu", 1, Products::fast), c, inputs);
    for (int threads : {2, 3})
      EXPECT_EQ(product(*make_backend("cpu", threads, Products::fast), c, inputs), one)
          << threads << " threads, " << describe(c);
  }
}

// FP32 products, and those of up to four rows (a token of each sequence), keep the exact bits.
TEST_F(MatrixUnitTest, FewRowsAndF32StayExact) {
  const std::shared_ptr<Backend> exact = make_backend("cpu", 2);
  for (const Case& c :
       {Case{.m = 4, .n = 70, .k = 97}, Case{.a = DType::e4m3, .b = DType::e5m2, .m = 1, .n = 300, .k = 64},
        Case{.a = DType::f32, .b = DType::f32, .m = 40, .n = 50, .k = 97}}) {
    const Inputs inputs = inputs_of(*exact, c);
    EXPECT_EQ(product(*fast_, c, inputs), product(*exact, c, inputs)) << describe(c);
  }
}

// Two sums of the same exact products in different orders, each within k * 2^-24 * sum |a b| of the exact one (the classical bound of
// summation in any order, first order); 2^-23 instead of 2^-24 covers scale and store. With a unit or without.
TEST_F(MatrixUnitTest, StaysWithinTheBoundOfSummation) {
  const std::shared_ptr<Backend> exact = make_backend("reference");
  for (const Types& types : kExactTypes) {
    for (Gemm kind : kKinds) {
      const Case c{.kind = kind, .a = types.a, .b = types.b, .m = 33, .n = 70, .k = 333};
      const Inputs inputs = inputs_of(*exact, c);
      const std::vector<std::uint32_t> expected = product(*exact, c, inputs),
                                       found = product(*fast_, c, inputs),
                                       sums = product(*exact, c, without_signs(inputs_of(*exact, c)));
      for (std::size_t i = 0; i < found.size(); ++i) {
        const float bound = 2 * static_cast<float>(c.k) * 0x1p-23f * std::bit_cast<float>(sums[i]);
        ASSERT_NEAR(std::bit_cast<float>(found[i]), std::bit_cast<float>(expected[i]), bound) << describe(c);
      }
    }
  }
}

TEST_F(MatrixUnitTest, TheDescriptionNamesTheUnitOrSaysThatThereIsNone) {
  EXPECT_EQ(make_backend("cpu", 2)->describe().find("amx"), std::string::npos);
  const std::string fast = fast_->describe();
  EXPECT_NE(fast.find(has_matrix_unit() ? "avx512 + amx, 2 threads" : "no matrix unit"), std::string::npos)
      << fast;
  const IsaScope isa("baseline");  // a unit goes with the level of its processors
  const std::string baseline = make_backend("cpu", 1, Products::fast)->describe();
  EXPECT_NE(baseline.find("no matrix unit"), std::string::npos) << baseline;
}

TEST_F(MatrixUnitBitsTest, TheKernelOfAProductIsNamed) {
  const Case c{.a = DType::e4m3, .b = DType::e4m3, .m = 40, .n = 40, .k = 40};
  product(*fast_, c, inputs_of(*fast_, c));
  EXPECT_NE(fast_->last_gemm_kernel().find("amx e4m3"), std::string::npos) << fast_->last_gemm_kernel();
}

}  // namespace
}  // namespace quaver
