/// Casts: the bytes of the numerical contract's table, layouts, and casts fused into producers.
#include <limits>

#include "quaver/fp8_format.h"
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Encoding {
  double x;
  int e4m3, e5m2;
};
/// docs/numerics.md, section 1.
const Encoding kEncodings[] = {{-0.0, 0x80, 0x80},
                               {1.0625, 0x38, 0x3C},
                               {1.125, 0x39, 0x3C},
                               {1.1875, 0x3A, 0x3D},
                               {1.375, 0x3B, 0x3E},
                               {0.3952, 0x2D, 0x36},
                               {456, 0x7E, 0x5F},
                               {464, 0x7E, 0x5F},
                               {480, 0x7E, 0x60},
                               {1e30, 0x7E, 0x7B},
                               {kInfinity, 0x7E, 0x7B},
                               {-kInfinity, 0xFE, 0xFB},
                               {std::nan(""), 0x7F, 0x7F},
                               {-std::nan(""), 0x7F, 0x7F},
                               {0x1p-10, 0x00, 0x14},
                               {0x1.000002p-10, 0x01, 0x14},
                               {0x1.8p-9, 0x02, 0x1A},
                               {0x1.ep-7, 0x08, 0x24},
                               {0x1.cp-7, 0x07, 0x23},
                               {0x1p-17, 0x00, 0x00},
                               {0x1.000002p-17, 0x00, 0x01},
                               {61440, 0x7E, 0x7B},
                               {65536, 0x7E, 0x7B},
                               {0x1.8p-16, 0x00, 0x02}};

class CastOperation : public BackendTest {
 protected:
  Output output(const Tensor& bytes, float scale) {
    Output result;
    result.quantized = {bytes, {}, backend->allocate(DType::f32, {1})};
    result.quantizer = {bytes.dtype(), vector({scale}), vector({0}), {}};
    return result;
  }
  std::vector<int> bytes_of(const Tensor& fp8) {
    const Tensor packed = backend->allocate(fp8.dtype(), fp8.shape());
    backend->copy(fp8, packed);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(fp8.elements()));
    backend->copy_to_host(packed, bytes.data());
    return {bytes.begin(), bytes.end()};
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, CastOperation, every_backend(), backend_name);

TEST_P(CastOperation, WritesTheBytesOfTheContractsTable) {
  Doubles x;
  std::vector<int> e4m3, e5m2;
  for (const Encoding& encoding : kEncodings) {
    x.push_back(encoding.x);
    e4m3.push_back(encoding.e4m3);
    e5m2.push_back(encoding.e5m2);
  }
  const auto count = static_cast<std::int64_t>(x.size());
  for (DType format : {DType::e4m3, DType::e5m2}) {
    const Output out = output(slice(1, count, format), 1);
    backend->cast(matrix(x, 1, count), out);
    EXPECT_EQ(bytes_of(out.quantized.bytes), format == DType::e4m3 ? e4m3 : e5m2) << name_of(format);
  }
}

TEST_P(CastOperation, GatherPutsManySmallTensorsInOrder) {
  constexpr std::int64_t kTensors = 300, kEach = 3;  // more than a launch takes
  std::vector<Tensor> sources;
  std::vector<std::int64_t> expected;
  for (std::int64_t i = 0; i < kTensors; ++i) {
    const std::vector<std::int64_t> values{i, -i, i << 40};
    sources.push_back(backend->allocate(DType::i64, {kEach}));
    backend->copy_from_host(values.data(), sources.back());
    expected.insert(expected.end(), values.begin(), values.end());
  }
  const Tensor all = backend->allocate(DType::i64, {kTensors, kEach});
  backend->gather(sources, all);
  std::vector<std::int64_t> found(expected.size());
  backend->copy_to_host(all, found.data());
  EXPECT_EQ(found, expected);
  backend->gather({}, backend->allocate(DType::i64, {0}));
}

TEST_P(CastOperation, TheTransposeHoldsTheSameBytesAndValuesHoldACopy) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, std::pair{3, 17}, std::pair{33, 5}}) {
    const Tensor x = matrix(normal_values(rows * cols, 1), rows, cols, DType::bf16);
    Output out = output(slice(rows, cols, DType::e4m3), 13);
    out.values = slice(rows, cols, DType::bf16);
    out.quantized.transposed = backend->allocate(DType::e4m3, {cols, rows});
    backend->cast(x, out);
    const std::vector<int> bytes = bytes_of(out.quantized.bytes), turned = bytes_of(out.quantized.transposed);
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < cols; ++n) EXPECT_EQ(turned[n * rows + m], bytes[m * cols + n]);
    }
    EXPECT_EQ(floats(out.values), floats(x));
  }
}

TEST_P(CastOperation, LeavesTheColumnsBesideTheBytesAlone) {
  const Tensor wide = backend->allocate(DType::e4m3, {3, 9});
  const std::vector<std::uint8_t> before(27, 0x55);
  backend->copy_from_host(before.data(), wide);
  backend->cast(matrix(Doubles(15, 1.0), 3, 5), output(wide.columns(3, 5), 1));
  const std::vector<int> after = bytes_of(wide);
  for (int i = 0; i < 27; ++i) EXPECT_EQ(after[i], i % 9 >= 3 && i % 9 < 8 ? 0x38 : 0x55) << i;
}

// silu(33) * 163/128 = 42.0234375 lies nearer to 44 than to 40 in E4M3; its BF16 value, 42, is a tie, and
// goes to the even 40.
TEST_P(CastOperation, AFusedCastRoundsToTheRealTypeFirst) {
  for (const auto& [type, expected] : {std::pair{DType::bf16, 40.0f}, std::pair{DType::f32, 44.0f}}) {
    for (bool values : {false, true}) {
      Output out = output(slice(1, 1, DType::e4m3), 1);
      if (values) out.values = slice(1, 1, type);
      backend->activation(Activation::swiglu, matrix({33}, 1, 1, type), matrix({163.0 / 128}, 1, 1, type),
                          out);
      EXPECT_EQ(floats(out.quantized.bytes)[0], expected) << name_of(type);
      if (type == DType::bf16) {
        EXPECT_EQ(floats(out.quantizer.amax)[0], 42) << "amax of the rounded value";
      }
    }
  }
}

TEST_P(CastOperation, ExponentsAreCountedByBinade) {
  const Doubles x{
      0,           -0.0, 1, -1.5, 2, 0x1p-126, 0x1p-149, 0x1.8p127, std::numeric_limits<double>::infinity(),
      std::nan("")};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Tensor counts = backend->allocate(DType::i64, {kExponents});
    backend->fill(counts, 2);
    for (int times = 0; times < 2; ++times) backend->count_exponents(matrix(x, 2, 5, dtype), counts);
    std::vector<std::int64_t> found(kExponents), expected(kExponents, 2);
    backend->copy_to_host(counts, found.data());
    expected[0] += 2 * 3;  // zeros and the subnormal, which is a zero in BF16
    expected[1] += 2;
    expected[127] += 2 * 2;
    expected[128] += 2;
    expected[254] += 2;
    expected[255] += 2 * 2;
    EXPECT_EQ(found, expected) << name_of(dtype);
  }
}

TEST_P(CastOperation, ExponentsOfALargeMatrixAreAllCounted) {
  const Tensor counts = backend->allocate(DType::i64, {kExponents});
  backend->fill(counts, 0);
  const std::int64_t rows = 131, cols = 257;  // more than a piece and a block of threads
  backend->count_exponents(matrix(normal_values(rows * cols, 1), rows, cols), counts);
  std::vector<std::int64_t> found(kExponents), expected(kExponents);
  backend->copy_to_host(counts, found.data());
  for (const double x : normal_values(rows * cols, 1)) ++expected[x == 0 ? 0 : std::ilogb(x) + 127];
  EXPECT_EQ(found, expected);
}

// One amax and one count for all that a producer writes, not per row or piece.
TEST_P(CastOperation, AProducerStagesTheAmaxOfItsResultNotOfItsInput) {
  const Output out = output(slice(2, 2, DType::e4m3), 1);
  backend->gate(GateActivation::sigmoid2, matrix({100, 1, 2, -3}, 2, 2), matrix({-1000, 0, 0, 1000}, 2, 2),
                out);
  EXPECT_EQ(floats(out.quantizer.amax)[0], 6) << "100 is gated away; -3 is doubled";
}

}  // namespace
}  // namespace quaver::testing
