/// Casts whose scales are read off the tensor: hand-computed blocks, and `cpu` against `reference`, bit for bit.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/random.h"
#include "ops/cpu/levels.h"
#include "ops/pointwise_support.h"
#include "quaver/backend.h"
#include "quaver/fp8_format.h"
#include "support/errors.h"

namespace quaver {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
constexpr CastNoise kNoise{7, 11};

std::vector<std::uint8_t> raw_bytes(const Tensor& tensor) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype()));
  std::memcpy(bytes.data(), tensor.raw(), bytes.size());
  return bytes;
}

struct Cast {
  QuantizedTensor q;
  std::vector<std::int64_t> counters;
  std::vector<std::uint8_t> bytes, scales;
  float scale_inv = 0;  ///< of the tensor; 0: none
  std::vector<float> values;
};

Cast cast_on(Backend& backend, const Tensor& x, const OperandCast& how, const CastNoise& noise = kNoise) {
  Cast cast;
  const Tensor counters = backend.allocate(DType::i64, {kCastCounters});
  backend.fill(counters, 0);
  cast.q = allocate_quantized(backend, how, x.rows(), x.cols());
  backend.quantize(x, how, noise, counters, cast.q);
  cast.counters.resize(kCastCounters);
  backend.copy_to_host(counters, cast.counters.data());
  cast.bytes = raw_bytes(cast.q.bytes);
  if (cast.q.blocks.scale_inv) cast.scales = raw_bytes(cast.q.blocks.scale_inv);
  if (cast.q.scale_inv) cast.scale_inv = download(backend, cast.q.scale_inv)[0];
  const Tensor values = backend.allocate(DType::bf16, x.shape());
  backend.dequantize(cast.q, values);
  cast.values = download(backend, values);
  return cast;
}

bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// One row of blocks of a rule, on both backends.
class HandComputed : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = make_backend(GetParam(), 2);
  Cast row(std::vector<float> values, const OperandCast& how) {
    const auto cols = static_cast<std::int64_t>(values.size());
    return cast_on(*backend, upload(*backend, values, {1, cols}), how);
  }
  const OperandCast mx = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop),
                    block = BlockScaling{}.cast_of(OperandRole::input, Gemm::fprop),
                    fp4 = Nvfp4Scaling{}.cast_of(OperandRole::input, Gemm::fprop),
                    current = CurrentScaling{}.cast_of(OperandRole::input, Gemm::fprop);
};
INSTANTIATE_TEST_SUITE_P(Backends, HandComputed, ::testing::Values("reference", "cpu"),
                         [](const auto& test) { return test.param; });

TEST_P(HandComputed, Mxfp8ScalesAreAmaxBy448RoundedUp) {
  const std::vector<std::pair<float, int>> cases = {{448, 127}, {449, 128},     {224, 126},  {1, 119},
                                                    {0, 0},     {3.4e38f, 247}, {kInf, 254}, {0x1p-140f, 0}};
  for (const auto& [amax, byte] : cases) {
    std::vector<float> values(33, 0.0f);
    values[5] = -amax;
    const Cast cast = row(values, mx);
    EXPECT_EQ(cast.scales, (std::vector<std::uint8_t>{static_cast<std::uint8_t>(byte), 0})) << amax;
  }
  EXPECT_EQ(e8m0_encode(kNan), 255);
  EXPECT_EQ(e8m0_encode(0x1.000004p-127f), 1);
  EXPECT_EQ(e8m0_encode(0x1p-127f), 0);
}

TEST_P(HandComputed, Mxfp8Elements) {
  // amax 3: 3/448 lies in (2^-8, 2^-7), so codes are of x * 128; 3 * 128 = 384 = 0x7C, 1 * 128 = 0x70.
  std::vector<float> values(40, 1.0f);
  values[0] = 3;
  values[1] = -0x1p-30f;  // underflows, keeps its sign
  values[35] = kNan;      // the second block, of eight: ones
  const Cast cast = row(values, mx);
  EXPECT_EQ(cast.scales, (std::vector<std::uint8_t>{120, 119}));
  EXPECT_EQ(cast.bytes[0], 0x7C);
  EXPECT_EQ(cast.bytes[1], 0x80);
  EXPECT_EQ(cast.bytes[2], 0x70);
  EXPECT_EQ(cast.bytes[35], 0x7F);
  EXPECT_EQ(cast.values[0], 3);
  EXPECT_EQ(cast.values[39], 1);
  EXPECT_TRUE(std::isnan(cast.values[35]));
  EXPECT_EQ(cast.counters[kCastElements], 40);
  EXPECT_EQ(cast.counters[kCastUnderflowed], 1);
  EXPECT_EQ(cast.counters[kCastNan], 1);
  EXPECT_EQ(cast.counters[kCastSaturated], 0);
}

TEST_P(HandComputed, AnInfinityStaysOneUnderMxfp8) {
  std::vector<float> values(32, 1.0f);
  values[3] = -kInf;
  const Cast cast = row(values, mx);
  EXPECT_EQ(cast.scales[0], 254);
  EXPECT_EQ(cast.bytes[3], 0xFE);
  EXPECT_EQ(cast.values[3], -kInf);  // 448 * 2^127
  EXPECT_EQ(cast.values[0], 0);
  EXPECT_EQ(cast.counters[kCastSaturated], 1);
}

TEST_P(HandComputed, BlockScalesAreRoundedDown) {
  const std::vector<std::pair<float, float>> cases = {{448, 1},     {449, 2}, {447, 1},  {224, 0.5f},
                                                      {3, 0x1p-7f}, {0, 1},   {kInf, 1}, {1e-40f, 0x1p-127f}};
  for (const auto& [amax, scale_inv] : cases) {
    std::vector<float> values(130, 0.0f);
    values[127] = amax;
    const Cast cast = row(values, block);
    EXPECT_EQ(download(*backend, cast.q.blocks.scale_inv), (std::vector<float>{scale_inv, 1})) << amax;
  }
  EXPECT_EQ(row(std::vector<float>(128, kNan), block).bytes[9], 0x7F);
}

TEST_P(HandComputed, CurrentScalingFillsTheFormat) {
  EXPECT_EQ(row({1, -3, kNan}, current).scale_inv, 1 / 149.333328f);
  EXPECT_EQ(row({1, -3, kNan}, current).bytes, (std::vector<std::uint8_t>{0x71, 0xFE, 0x7F}));
  EXPECT_EQ(row({1e-40f}, current).scale_inv, 1 / std::numeric_limits<float>::max());
  EXPECT_EQ(row({1000}, current).scale_inv, 1 / 0.448f);
  for (const float amax : {0.0f, kInf, kNan}) EXPECT_EQ(row({amax}, current).scale_inv, 1) << amax;
}

TEST_P(HandComputed, Nvfp4HasTwoLevels) {
  // Tensor scale 2688 / 12 = 224. Block 0: 12 / 6 * 224 = 448 = 0x7E, elements times 224 / 448. Block 1: 3 / 6 * 224 = 112 =
  // 0x6E, elements times 2.
  std::vector<float> values(19, 0.0f);
  values[0] = 12, values[1] = -6, values[2] = 0.4f, values[3] = 0.6f, values[16] = 3, values[17] = 0.75f,
  values[18] = -1.2f;
  const Cast cast = row(values, fp4);
  EXPECT_EQ(cast.scale_inv, 1 / 224.0f);
  EXPECT_EQ(cast.scales, (std::vector<std::uint8_t>{0x7E, 0x6E}));
  ASSERT_EQ(cast.bytes.size(), 10u);
  EXPECT_EQ(cast.bytes[0], 0xD7);  // 6; -3
  EXPECT_EQ(cast.bytes[1], 0x10);  // 0.2 -> 0; 0.3 -> 0.5
  EXPECT_EQ(cast.bytes[8], 0x37);  // 6; 1.5
  EXPECT_EQ(cast.bytes[9], 0x0C);  // -2.4 -> -2; nothing
  EXPECT_EQ(cast.values[0], 6 * 448);
  EXPECT_EQ(cast.counters[kCastUnderflowed], 1);
}

TEST_P(HandComputed, ANanMakesItsNvfp4BlockNan) {
  std::vector<float> values(32, 1.0f);
  values[20] = kNan;
  const Cast cast = row(values, fp4);
  EXPECT_EQ(cast.scales[1], 0x7F);
  EXPECT_EQ(cast.values[0], 448 * 6);
  for (int n = 16; n < 32; ++n) EXPECT_TRUE(std::isnan(cast.values[static_cast<std::size_t>(n)])) << n;
  EXPECT_EQ(cast.counters[kCastNan], 1);
}

TEST_P(HandComputed, StochasticRoundingIsRightOnAverage) {
  OperandCast how = fp4;
  how.stochastic = true;
  // One element in 16 is 6, so that codes stand for the numbers themselves; 1.125 is a quarter of the way from 1 to 1.5.
  constexpr std::int64_t kCols = 1 << 14;
  std::vector<float> values(kCols, 1.125f);
  for (std::int64_t n = 0; n < kCols; n += 16) values[static_cast<std::size_t>(n)] = 6;
  const Cast cast = row(values, how);
  double sum = 0;
  std::int64_t count = 0;
  for (std::int64_t n = 0; n < kCols; ++n) {
    if (n % 16 == 0) continue;
    const float value = cast.values[static_cast<std::size_t>(n)] / 448;  // the block's scale_inv
    EXPECT_TRUE(value == 1.0f || value == 1.5f) << value;
    sum += value;
    ++count;
  }
  // The standard deviation of one rounding is 0.217; five of the mean's.
  EXPECT_NEAR(sum / static_cast<double>(count), 1.125, 5 * 0.217 / std::sqrt(static_cast<double>(count)));
  EXPECT_NE(cast.bytes, cast_on(*backend, upload(*backend, values, {1, kCols}), how, {7, 12}).bytes);
  EXPECT_EQ(cast.bytes, cast_on(*backend, upload(*backend, values, {1, kCols}), how).bytes);
}

TEST_P(HandComputed, HadamardMatricesCancelInAProductOverTheRows) {
  // Codes that hold the turned numbers exactly enough: the product over 35 rows (two groups and a rest of three) agrees
  // with the product of the numbers themselves up to E4M3's error.
  constexpr std::int64_t kRows = 35, kCols = 3;
  OperandCast how{DType::e4m3, kRows, 1, mx.rule, false, true};
  std::vector<float> a, b;
  for (std::int64_t i = 0; i < kRows * kCols; ++i) {
    a.push_back(Random(1, 1).normal(static_cast<std::uint64_t>(i)));
    b.push_back(Random(1, 2).normal(static_cast<std::uint64_t>(i)));
  }
  const Cast qa = cast_on(*backend, upload(*backend, a, {kRows, kCols}), how),
             qb = cast_on(*backend, upload(*backend, b, {kRows, kCols}), how);
  for (int i = 0; i < kCols; ++i) {
    for (int j = 0; j < kCols; ++j) {
      double found = 0, expected = 0, size = 0;
      for (int k = 0; k < kRows; ++k) {
        const auto at = [&](int column) { return static_cast<std::size_t>(k * kCols + column); };
        found += static_cast<double>(qa.values[at(i)]) * qb.values[at(j)];
        expected += static_cast<double>(a[at(i)]) * b[at(j)];
        size += std::fabs(static_cast<double>(a[at(i)]) * b[at(j)]);
      }
      EXPECT_NEAR(found, expected, 0.0625 * size + 0.1);  // 2^-4 of each factor, rounded both ways
    }
  }
  EXPECT_NE(qa.values[0], a[0]);
}

/// Normal numbers with some of every other kind.
std::vector<float> mixed_numbers(std::int64_t count, std::uint64_t stream) {
  const Random random(3, stream);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<std::uint64_t>(i);
    float value =
        random.normal(2 * index) * std::ldexp(1.0f, static_cast<int>(random.bits(2 * index + 1) % 24) - 12);
    switch (random.bits(2 * index + 1) >> 32 & 1023) {
      case 0:
        value = kNan;
        break;
      case 1:
        value = -kInf;
        break;
      case 2:
        value = 0x1p-140f;
        break;
      case 3:
        value = 3.3e38f;
        break;
      case 4:
        value = -0.0f;
        break;
    }
    values.push_back(value);
  }
  return values;
}

std::vector<OperandCast> all_casts() {
  std::vector<OperandCast> casts;
  for (const Recipe& recipe : std::vector<Recipe>{BlockScaling{}, Mxfp8Scaling{Fp8Format::hybrid},
                                                  Nvfp4Scaling{}, CurrentScaling{}}) {
    for (const auto& [role, gemm] : {std::pair(OperandRole::input, Gemm::fprop),
                                     {OperandRole::input, Gemm::wgrad},
                                     {OperandRole::weight, Gemm::fprop},
                                     {OperandRole::weight, Gemm::dgrad},
                                     {OperandRole::grad_output, Gemm::dgrad},
                                     {OperandRole::grad_output, Gemm::wgrad}})
      casts.push_back(cast_of(recipe, role, gemm));
  }
  // What no recipe of the library asks for.
  const OperandCast mx = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop),
                    fp4 = Nvfp4Scaling{}.cast_of(OperandRole::input, Gemm::fprop);
  casts.push_back({DType::e5m2, 3, 5, mx.rule, true, true});
  casts.push_back({DType::e2m1, 7, 3, fp4.rule, true, true});
  casts.push_back({DType::e4m3, 0, 0, fp4.rule, true, false});
  return casts;
}

TEST(QuantizeOnCpu, HasTheBitsOfTheReference) {
  const auto reference = make_backend("reference");
  for (const int threads : {1, 3}) {
    const auto cpu = make_backend("cpu", threads);
    for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{17, 1223}, {1, 1}, {130, 47}}) {
      for (const DType type : {DType::f32, DType::bf16}) {
        const std::vector<float> numbers = mixed_numbers(rows * (cols + 3), static_cast<std::uint64_t>(rows));
        const Tensor wide = upload(*reference, numbers, {rows, cols + 3}, type), x = wide.columns(1, cols);
        const Tensor cpu_wide = upload(*cpu, numbers, {rows, cols + 3}, type),
                     cpu_x = cpu_wide.columns(1, cols);
        for (const OperandCast& how : all_casts()) {
          const Cast expected = cast_on(*reference, x, how), found = cast_on(*cpu, cpu_x, how);
          const std::string what = fmt::format("{} x {} {} to {} in {} x {}", rows, cols, name_of(type),
                                               name_of(how.format), how.block_rows, how.block_cols);
          EXPECT_EQ(found.bytes, expected.bytes) << what;
          EXPECT_EQ(found.scales, expected.scales) << what;
          EXPECT_EQ(std::bit_cast<std::uint32_t>(found.scale_inv),
                    std::bit_cast<std::uint32_t>(expected.scale_inv))
              << what;
          EXPECT_TRUE(same_numbers(found.values, expected.values)) << what;
          EXPECT_EQ(found.counters, expected.counters) << what;
        }
      }
    }
  }
}

/// Finite numbers: the rows' magnitudes from BF16's least to its largest, in each row of blocks some that underflow, become
/// subnormal, or are zero.
std::vector<float> finite_numbers(std::int64_t rows, std::int64_t cols) {
  const Random random(5, 1);
  std::vector<float> values;
  for (std::int64_t m = 0; m < rows; ++m) {
    const int exponent = static_cast<int>(m * 251 % 259) - 133;
    for (std::int64_t n = 0; n < cols; ++n) {
      const auto index = static_cast<std::uint64_t>(m * cols + n);
      const int down =
          random.bits(2 * index) % 4 == 0 ? static_cast<int>(random.bits(2 * index) >> 8 & 31) : 0;
      const float mantissa = 1 + static_cast<float>(random.bits(2 * index + 1) & 127) / 128;
      const float value = std::ldexp(mantissa, std::max(-133, exponent - down));
      const auto kind = random.bits(2 * index + 1) >> 32 & 31;
      values.push_back(kind == 0 ? 0.0f : kind == 1 ? -0.0f : kind < 16 ? -value : value);
    }
  }
  return values;
}

/// Powers of two in blocks have a way of their own where the level has instructions for it.
TEST(QuantizeOnCpu, SlowFiniteBlocksHaveTheBitsOfTheReferenceAtEveryLevel) {
  const auto reference = make_backend("reference");
  constexpr std::int64_t kRows = 261, kCols = 2211;
  const std::vector<float> numbers = finite_numbers(kRows, kCols);
  const Tensor x = upload(*reference, numbers, {kRows, kCols}, DType::bf16);
  for (const OperandCast& how : all_casts()) {
    if (how.stochastic || how.hadamard || how.format == DType::e2m1) continue;
    const Cast expected = cast_on(*reference, x, how);
    for (const auto& cpu : testing::cpu_backends()) {
      const Cast found = cast_on(*cpu, upload(*cpu, numbers, {kRows, kCols}, DType::bf16), how);
      const std::string what = fmt::format("{} to {} in {} x {}", cpu->describe(), name_of(how.format),
                                           how.block_rows, how.block_cols);
      EXPECT_TRUE(found.bytes == expected.bytes) << what;
      EXPECT_TRUE(found.scales == expected.scales) << what;
      EXPECT_EQ(found.counters, expected.counters) << what;
    }
  }
}

TEST(QuantizeOnCpu, TwoCastsAtOnceAreTwoCasts) {
  const auto reference = make_backend("reference");
  constexpr std::int64_t kRows = 261, kCols = 2211;
  std::vector<float> numbers = finite_numbers(kRows, kCols);
  numbers[3 * kCols + 700] = kNan;  // a block of the general way among the others
  numbers[200 * kCols + 2100] = -kInf;
  for (const Recipe& recipe : std::vector<Recipe>{BlockScaling{}, Mxfp8Scaling{Fp8Format::hybrid}}) {
    const OperandCast rows = cast_of(recipe, OperandRole::grad_output, Gemm::dgrad),
                      columns = cast_of(recipe, OperandRole::grad_output, Gemm::wgrad);
    const Tensor x = upload(*reference, numbers, {kRows, kCols}, DType::bf16);
    const Cast by_rows = cast_on(*reference, x, rows), by_columns = cast_on(*reference, x, columns);
    for (const auto& cpu : testing::cpu_backends()) {
      const Tensor same = upload(*cpu, numbers, {kRows, kCols}, DType::bf16);
      const QuantizedTensor first = allocate_quantized(*cpu, rows, kRows, kCols),
                            second = allocate_quantized(*cpu, columns, kRows, kCols);
      const Tensor counters = cpu->allocate(DType::i64, {kCastCounters});
      cpu->fill(counters, 0);
      cpu->quantize_both(same, {rows, kNoise, first}, {columns, kNoise, second}, counters);
      EXPECT_TRUE(raw_bytes(first.bytes) == by_rows.bytes) << cpu->describe();
      EXPECT_TRUE(raw_bytes(second.bytes) == by_columns.bytes) << cpu->describe();
      EXPECT_TRUE(raw_bytes(first.blocks.scale_inv) == by_rows.scales) << cpu->describe();
      EXPECT_TRUE(raw_bytes(second.blocks.scale_inv) == by_columns.scales) << cpu->describe();
      for (int i = 0; i < kCastCounters; ++i) {
        const auto at = static_cast<std::size_t>(i);
        EXPECT_EQ(counters.data<std::int64_t>()[i], by_rows.counters[at] + by_columns.counters[at]) << i;
      }
    }
  }
}

TEST(QuantizeOnCpu, ProductsHaveTheBitsOfTheReference) {
  const auto reference = make_backend("reference"), cpu = make_backend("cpu", 3);
  constexpr std::int64_t kM = 17, kN = 37, kK = 131;
  for (const Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
    const Shape a_shape = kind == Gemm::wgrad ? Shape{kK, kM} : Shape{kM, kK},
                b_shape = kind == Gemm::fprop ? Shape{kN, kK} : Shape{kK, kN};
    std::vector<float> a(kM * kK), b(kN * kK);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = Random(1, 1).normal(i);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = Random(1, 2).normal(i);
    const OperandRole a_role = kind == Gemm::fprop ? OperandRole::input : OperandRole::grad_output,
                      b_role = kind == Gemm::wgrad ? OperandRole::input : OperandRole::weight;
    for (const Recipe& recipe :
         std::vector<Recipe>{BlockScaling{}, Mxfp8Scaling{}, Nvfp4Scaling{}, CurrentScaling{}}) {
      for (const bool real_a : {false, true}) {
        const auto product = [&](Backend& backend) {
          const Tensor ta = upload(backend, a, a_shape, DType::bf16),
                       tb = upload(backend, b, b_shape, DType::bf16);
          GemmOperand left(ta);
          if (!real_a) left = cast_on(backend, ta, cast_of(recipe, a_role, kind)).q;
          const Tensor out = backend.allocate(DType::f32, {kM, kN});
          backend.gemm(kind, left, cast_on(backend, tb, cast_of(recipe, b_role, kind)).q, {}, false, out);
          return download(backend, out);
        };
        const auto expected = product(*reference);
        EXPECT_TRUE(same_numbers(product(*cpu), expected)) << describe(recipe) << name_of(kind) << real_a;
        double sum = 0, size = 0;
        for (int k = 0; k < kK; ++k) {
          const double x = a[static_cast<std::size_t>(kind == Gemm::wgrad ? k * kM : k)],
                       y = b[static_cast<std::size_t>(kind == Gemm::fprop ? k : k * kN)];
          sum += x * y;
          size += std::fabs(x * y);
        }
        // E2M1's neighbours are up to a third apart, and gradients are rounded at random to either.
        EXPECT_NEAR(expected[0], sum, 0.5 * size) << describe(recipe) << name_of(kind) << real_a;
      }
    }
  }
}

TEST(Quantize, ChecksItsArguments) {
  const auto backend = make_backend("cpu", 1);
  const Tensor x = upload(*backend, std::vector<float>(64, 1.0f), {2, 32});
  const OperandCast mx = Mxfp8Scaling{}.cast_of(OperandRole::input, Gemm::fprop);
  OperandCast other = mx;
  other.block_cols = 16;
  const QuantizedTensor out = allocate_quantized(*backend, other, 2, 32);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { backend->quantize(x, mx, {}, {}, out); }),
                       "allocated for another cast"));
  other.rule = nullptr;
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { backend->quantize(x, other, {}, {}, out); }),
                       "ScaleRule"));
  const CustomScaling nameless{"mine"};
  EXPECT_TRUE(
      contains(error_message(ErrorKind::usage, [&] { nameless.cast_of(OperandRole::input, Gemm::fprop); }),
               "recipe \"mine\""));
}

}  // namespace
}  // namespace quaver
