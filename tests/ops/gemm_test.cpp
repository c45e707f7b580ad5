/// The CPU backend's GEMM against the reference: the same bits for FP8 and BF16 at every level and thread
/// count.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/levels.h"
#include "ops/gemm_support.h"
#include "ops/pointwise_support.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

using namespace testing;

struct LevelBackend {
  std::string name;
  std::shared_ptr<Backend> backend;
};

/// Of a level whose products of few rows are `few_rows` on any processor.
std::shared_ptr<Backend> backend_with(const cpu::FewRowsKernels* few_rows, int threads, cpu::Level level) {
  struct Tables {
    cpu::GemmKernels gemm;
    cpu::Kernels kernels;
  };
  const auto tables = std::make_shared<Tables>(Tables{*cpu::kernels_of(level).gemm, cpu::kernels_of(level)});
  tables->gemm.few_rows_by_numbers = tables->gemm.few_rows_by_pairs = few_rows;
  tables->kernels.gemm = &tables->gemm;
  const auto backend = std::make_shared<CpuBackend>(threads, level, tables->kernels);
  return {backend.get(), [tables, backend](Backend*) {}};  // the tables live as long as the backend
}

std::vector<LevelBackend> all_levels(int threads) {
  std::vector<LevelBackend> backends;
  for (cpu::Level level : cpu::supported_levels()) {
    const std::string name(cpu::name_of(level));
    const testing::IsaScope scope{name};
    backends.push_back({name, make_backend("cpu", threads)});
    const cpu::GemmKernels& gemm = *cpu::kernels_of(level).gemm;
    if (!gemm.few_rows_by_numbers) continue;
    backends.push_back(
        {name + ", few rows by numbers", backend_with(gemm.few_rows_by_numbers, threads, level)});
    backends.push_back({name + ", few rows by pairs", backend_with(gemm.few_rows_by_pairs, threads, level)});
  }
  return backends;
}

class GemmTest : public ::testing::Test {
 protected:
  void expect_reference_bits(const Case& c) { expect_reference_bits(c, inputs_of(*reference_, c)); }
  void expect_reference_bits(const Case& c, const Inputs& inputs) {
    const std::vector<std::uint32_t> expected = product(*reference_, c, inputs);
    for (const auto& [name, backend] : levels_) {
      const std::vector<std::uint32_t> found = product(*backend, c, inputs);
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i], expected[i])
            << name << ": " << describe(c) << ", row " << i / static_cast<std::size_t>(c.n) << " column "
            << i % static_cast<std::size_t>(c.n);
      }
    }
  }

  std::shared_ptr<Backend> reference_ = make_backend("reference");
  std::vector<LevelBackend> levels_ = all_levels(2);
};

TEST_F(GemmTest, EqualsReferenceForAllKindsTypesAndOddSizes) {
  for_all_kinds_types_and_odd_sizes([&](const Case& c) { expect_reference_bits(c); });
}

// Up to four rows have a kernel of their own: ends of columns and of the contraction at every place of its tiles (64
// columns), lines (64 codes or 32 BF16 numbers) and pieces (16 and 8), one tile and several.
TEST_F(GemmTest, FewRowsEqualReferenceAtEveryEnd) {
  int variant = 0;
  for (const Types& types : kExactTypes) {
    for (std::int64_t m = 1; m <= 5; ++m) {
      for (std::int64_t n : {1, 16, 63, 64, 65, 200}) {
        for (std::int64_t k : {1, 2, 15, 16, 18, 31, 32, 63, 64, 65, 127, 193}) {
          ++variant;
          expect_reference_bits({.a = types.a,
                                 .b = types.b,
                                 .out = variant % 2 == 0 ? DType::f32 : DType::bf16,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .bias = variant % 3 != 0,
                                 .accumulate = variant % 5 < 2,
                                 .values = variant % 7 == 0 ? Values::special : Values::plain});
        }
      }
    }
  }
}

// Long columns: lines are transposed into four places in turn, while others are multiplied; the last vector of columns ends anywhere.
TEST_F(GemmTest, FewRowsEqualReferenceOverManyLines) {
  int variant = 0;
  for (const Types& types : kExactTypes) {
    for (std::int64_t m = 1; m <= 4; ++m) {
      for (std::int64_t n : {61, 64, 130}) {
        for (std::int64_t k : {256, 257, 320, 449, 1030}) {
          ++variant;
          expect_reference_bits({.a = types.a,
                                 .b = types.b,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .bias = variant % 3 != 0,
                                 .accumulate = variant % 5 < 2,
                                 .values = variant % 4 == 0 ? Values::special : Values::plain});
        }
      }
    }
  }
}

// Zeros of both signs and subnormal numbers alone, and one NaN among them: it shows in its column only.
TEST_F(GemmTest, FewRowsOfZerosAndSubnormalNumbers) {
  for (DType format : {DType::e4m3, DType::e5m2}) {
    const Case c{.a = DType::e4m3, .b = format, .m = 3, .n = 70, .k = 200};
    Inputs inputs = inputs_of(*reference_, c);
    const Tensor& columns = inputs.b.values;
    const int codes = format == DType::e4m3 ? 8 : 4;
    for (std::int64_t n = 0; n < c.n; ++n) {
      for (std::int64_t k = 0; k < c.k; ++k) {
        const std::int64_t i = n * 7 + k * 3;
        columns.data<std::uint8_t>()[n * columns.row_stride() + k] =
            static_cast<std::uint8_t>((n < 16 ? 0 : i % codes) | (i % 2 == 0 ? 0x80 : 0));
      }
    }
    expect_reference_bits(c, inputs);
    columns.data<std::uint8_t>()[37 * columns.row_stride() + 131] = 0xFF;
    expect_reference_bits(c, inputs);
    const std::vector<std::uint32_t> found = product(*levels_.back().backend, c, inputs);
    for (std::int64_t i = 0; i < c.m * c.n; ++i)
      EXPECT_EQ(found[static_cast<std::size_t>(i)] == 0x7FC00000u, i % c.n == 37) << i;
  }
}

// Every code of either format in every column of a tile and at every place of a line.
TEST_F(GemmTest, FewRowsWidenEveryCode) {
  for (DType format : {DType::e4m3, DType::e5m2}) {
    const Case c{.a = DType::e4m3, .b = format, .m = 1, .n = 256, .k = 65};
    Inputs inputs = inputs_of(*reference_, c);
    const Tensor &row = inputs.a.values, &columns = inputs.b.values;
    for (std::int64_t place = 0; place < c.k; ++place) {
      for (std::int64_t k = 0; k < c.k; ++k) {
        row.data<std::uint8_t>()[k] = k == place ? 0x38 : 0;  // 1 of E4M3
        for (std::int64_t n = 0; n < c.n; ++n)
          columns.data<std::uint8_t>()[n * columns.row_stride() + k] =
              k == place ? static_cast<std::uint8_t>(n + place) : 0;
      }
      expect_reference_bits(c, inputs);
    }
  }
}

// Columns that end where the memory does: a read beyond them ends the program.
TEST_F(GemmTest, FewRowsReadNothingBeyondTheColumns) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (const Types& types : {kExactTypes[0], kExactTypes[1]}) {
    const Case c{.a = types.a, .b = types.b, .m = 2, .n = 67, .k = 35};
    Inputs inputs = inputs_of(*reference_, c);
    const std::size_t bytes = static_cast<std::size_t>(c.n * c.k) * size_of(c.b);
    const std::size_t readable = (bytes + page - 1) / page * page;
    void* const memory =
        mmap(nullptr, readable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    ASSERT_EQ(mprotect(static_cast<std::byte*>(memory) + readable, page, PROT_NONE), 0);
    const Tensor at_the_end(
        std::make_shared<Storage>(static_cast<std::byte*>(memory) + readable - bytes, bytes, Device::host,
                                  [memory, size = readable + page] { munmap(memory, size); }),
        c.b, {c.n, c.k});
    reference_->copy(inputs.b.values, at_the_end);
    inputs.b.values = at_the_end;
    expect_reference_bits(c, inputs);
  }
}

// Columns of the product that followed last time are fetched ahead: other sizes and types, several tiles, and memory that has gone.
TEST_F(GemmTest, FewRowsInTurnsEqualReference) {
  const std::vector<Case> cases = {{.a = DType::e4m3, .b = DType::e4m3, .m = 1, .n = 300, .k = 768},
                                   {.a = DType::e4m3, .b = DType::e4m3, .m = 1, .n = 130, .k = 2048},
                                   {.a = DType::bf16, .b = DType::bf16, .m = 2, .n = 70, .k = 100},
                                   {.a = DType::e4m3, .b = DType::e5m2, .m = 4, .n = 3, .k = 5}};
  std::vector<Inputs> inputs;
  for (const Case& c : cases) inputs.push_back(inputs_of(*reference_, c));
  for (int round = 0; round < 3; ++round) {
    if (round == 2) inputs[1] = inputs_of(*reference_, cases[1]);
    for (std::size_t i = 0; i < cases.size(); ++i) expect_reference_bits(cases[i], inputs[i]);
  }
}

TEST_F(GemmTest, EqualsReferenceWithInfinitiesAndNan) {
  for (const Types& types : kExactTypes) {
    for (Gemm kind : kKinds) {
      expect_reference_bits(
          {.kind = kind, .a = types.a, .b = types.b, .m = 19, .n = 53, .k = 37, .values = Values::special});
      expect_reference_bits({.kind = kind,
                             .a = types.a,
                             .b = types.b,
                             .out = DType::bf16,
                             .m = 70,
                             .n = 40,
                             .k = 4,
                             .accumulate = true,
                             .values = Values::special});
    }
  }
}

TEST_F(GemmTest, FlushesDenormalsOfBf16AsTheReference) {
  for (Gemm kind : kKinds) {
    for (std::int64_t k : {1, 2, 3, 16, 33}) {
      expect_reference_bits({.kind = kind, .m = 37, .n = 65, .k = k, .values = Values::tiny});
    }
  }
  for (std::int64_t m : {1, 4}) {  // a sum of -0 stays one where the contraction ends within a line
    for (std::int64_t k : {1, 2, 3, 16, 33, 34, 70}) {
      expect_reference_bits({.m = m, .n = 65, .k = k, .values = Values::tiny});
    }
  }
}

// 2^-126 - 1.5 * 2^-151 rounds to the smallest normal number if denormals are kept, but 24 bits hold a
// smaller neighbour of it, which is denormal: processors call that a denormal result and flush it.
TEST_F(GemmTest, FlushesAResultThatOnlyDenormalRoundingWouldMakeNormal) {
  const Case c{.m = 1, .n = 1, .k = 2};
  Inputs inputs = inputs_of(*reference_, c);
  const float a[] = {0x1p-63f, -0x1.8p-75f}, b[] = {0x1p-63f, 0x1p-76f};
  for (int k = 0; k < 2; ++k) {
    inputs.a.values.data<bf16>()[k] = to_bf16(a[k]);
    inputs.b.values.data<bf16>()[k] = to_bf16(b[k]);
  }
  for (const auto& [name, backend] : levels_) {
    EXPECT_EQ(product(*backend, c, inputs), std::vector<std::uint32_t>{0}) << name;
  }
  EXPECT_EQ(product(*reference_, c, inputs), std::vector<std::uint32_t>{0}) << "reference";
}

TEST_F(GemmTest, KeepsADenormalScale) {
  const Case c{.a = DType::e4m3, .b = DType::e4m3, .m = 20, .n = 33, .k = 21};
  expect_reference_bits(c, inputs_of(*reference_, c, 0x1p-70f, 0x1.8p-65f));
}

TEST_F(GemmTest, CarriesSumsAcrossBlocksOfTheContraction) {
  for (const Types& types : {kExactTypes[0], kExactTypes[2]}) {
    expect_reference_bits(
        {.kind = Gemm::wgrad, .a = types.a, .b = types.b, .m = 70, .n = 100, .k = 1111, .accumulate = true});
    expect_reference_bits(
        {.kind = Gemm::fprop, .a = types.a, .b = types.b, .m = 3, .n = 100, .k = 2049, .bias = true});
  }
}

// Long enough that the packed copies of 32 rows exceed their budget: several stripes of rows and of columns.
TEST_F(GemmTest, WorksInStripes) {
  expect_reference_bits(
      {.kind = Gemm::fprop, .a = DType::e4m3, .b = DType::e4m3, .m = 33, .n = 97, .k = 34001});
}

TEST_F(GemmTest, AnEmptyContractionGivesBiasOrZeroOrTheOldValues) {
  for (const Types& types : kExactTypes) {
    expect_reference_bits({.a = types.a, .b = types.b, .m = 3, .n = 5, .k = 0, .bias = true});
    expect_reference_bits({.kind = Gemm::wgrad, .a = types.a, .b = types.b, .m = 70, .n = 5, .k = 0});
    expect_reference_bits(
        {.kind = Gemm::dgrad, .a = types.a, .b = types.b, .m = 3, .n = 5, .k = 0, .accumulate = true});
  }
}

TEST_F(GemmTest, AnEmptyOutputIsNoError) {
  for (const Size& size : {Size{0, 3, 4}, Size{3, 0, 4}}) {
    const Case c{.m = size.m, .n = size.n, .k = size.k};
    const Inputs inputs = inputs_of(*reference_, c);
    for (const auto& [name, backend] : levels_) EXPECT_TRUE(product(*backend, c, inputs).empty());
  }
}

TEST_F(GemmTest, ThreadsDoNotChangeBits) {
  for (const Case& c :
       {Case{.a = DType::f32, .b = DType::f32, .m = 150, .n = 300, .k = 70},
        Case{.kind = Gemm::wgrad, .a = DType::e5m2, .b = DType::e4m3, .m = 130, .n = 257, .k = 300},
        Case{.kind = Gemm::dgrad, .m = 5, .n = 500, .k = 41},
        Case{.a = DType::e4m3, .b = DType::e4m3, .m = 1, .n = 501, .k = 170},
        Case{.m = 3, .n = 700, .k = 170}}) {
    const Inputs inputs = inputs_of(*reference_, c);
    const std::vector<LevelBackend> one = all_levels(1);
    for (int threads : {2, 3, 4}) {
      const std::vector<LevelBackend> several = all_levels(threads);
      for (std::size_t i = 0; i < one.size(); ++i) {
        EXPECT_EQ(product(*several[i].backend, c, inputs), product(*one[i].backend, c, inputs))
            << threads << " threads, " << one[i].name << ": " << describe(c);
      }
    }
  }
}

// Two sums of the same products, each within k * 2^-24 * sum |a b| of the exact one (the classical bound of
// recursive summation, first order; fused products are only better); 2^-23 instead of 2^-24 covers scale,
// bias and the store.
TEST_F(GemmTest, F32StaysWithinTheBoundOfSummation) {
  for (Gemm kind : kKinds) {
    for (const Size& size : kOddSizes) {
      const Case c{.kind = kind, .a = DType::f32, .b = DType::f32, .m = size.m, .n = size.n, .k = size.k};
      const Inputs inputs = inputs_of(*reference_, c);
      Inputs absolute = inputs_of(*reference_, c);
      for (const Tensor* tensor : {&absolute.a.values, &absolute.b.values}) {
        for (std::int64_t i = 0; i < tensor->rows(); ++i) {
          float* row = tensor->data<float>() + i * tensor->row_stride();
          for (std::int64_t j = 0; j < tensor->cols(); ++j) row[j] = std::fabs(row[j]);
        }
      }
      const std::vector<std::uint32_t> expected = product(*reference_, c, inputs),
                                       sums = product(*reference_, c, absolute);
      for (const auto& [name, backend] : levels_) {
        const std::vector<std::uint32_t> found = product(*backend, c, inputs);
        for (std::size_t i = 0; i < found.size(); ++i) {
          const float bound = 2 * static_cast<float>(size.k) * 0x1p-23f * std::bit_cast<float>(sums[i]);
          ASSERT_NEAR(std::bit_cast<float>(found[i]), std::bit_cast<float>(expected[i]), bound)
              << name << ": " << describe(c);
        }
      }
    }
  }
}

TEST_F(GemmTest, LeavesTheColumnsBesideTheOutputAlone) {
  for (const auto& [name, backend] : levels_) {
    const Case c{.out = DType::bf16, .m = 9, .n = 21, .k = 5};
    const Inputs inputs = inputs_of(*backend, c);
    const Tensor wide = backend->allocate(DType::bf16, {c.m, c.n + 4});
    backend->fill(wide, 5);
    backend->gemm(c.kind, inputs.a, inputs.b, {}, false, wide.columns(2, c.n));
    const std::vector<float> values = download(*backend, wide);
    for (std::int64_t m = 0; m < c.m; ++m) {
      for (std::int64_t n : {std::int64_t{0}, std::int64_t{1}, c.n + 2, c.n + 3}) {
        EXPECT_EQ(values[static_cast<std::size_t>(m * (c.n + 4) + n)], 5) << name;
      }
    }
  }
}

TEST_F(GemmTest, RefusesTwoE5m2Operands) {
  const Case c{.a = DType::e5m2, .b = DType::e5m2, .m = 2, .n = 2, .k = 2};
  const Inputs inputs = inputs_of(*reference_, c);
  for (const auto& [name, backend] : levels_) EXPECT_THROW(product(*backend, c, inputs), Error);
}

}  // namespace
}  // namespace quaver
