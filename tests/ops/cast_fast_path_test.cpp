/// Stretches of numbers whose FP8 results are normal numbers or zeros take a path of their own on some levels; so do large
/// results. All must give the reference's bytes, amax and counters.
#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

constexpr float kScales[] = {1.0f,   1.7f,          0.3f,   57.34375f, 1e-3f,
                             3.4e5f, 0x1.fffffep9f, 1e-36f, 1e37f,     3e-39f};

Output cast_output(std::int64_t rows, std::int64_t cols, DType format, float scale) {
  Output output;
  output.quantized = {reference().allocate(format, {rows, cols}), Tensor(),
                      reference().allocate(DType::f32, {1})};
  output.quantizer = {format, reference().allocate(DType::f32, {1}), reference().allocate(DType::f32, {1}),
                      reference().allocate(DType::i64, {kCastCounters})};
  reference().fill(output.quantizer.scale, scale);
  reference().fill(output.quantizer.amax, 0);
  reference().fill(output.quantizer.counters, 0);
  return output;
}

void expect_same_cast(const Tensor& x, DType format, float scale) {
  const auto cast = [&](Backend& backend) {
    const Output output = cast_output(x.rows(), x.cols(), format, scale);
    backend.cast(x, output);
    return std::vector{bytes_of(output.quantized.bytes), bytes_of(output.quantizer.amax),
                       bytes_of(output.quantizer.counters)};
  };
  const auto expected = cast(reference());
  for (const auto& backend : cpu_backends()) {
    EXPECT_TRUE(cast(*backend) == expected) << backend->describe() << ", " << name_of(x.dtype()) << " to "
                                            << name_of(format) << ", scale " << scale;
  }
}

/// All BF16 numbers in ascending order of their bits: neighbours are of one size.
TEST(CastFastPath, EveryBf16NumberAtManyScales) {
  const Tensor x = reference().allocate(DType::bf16, {1, 65536});
  for (int i = 0; i < 65536; ++i) x.data<bf16>()[i].bits = static_cast<std::uint16_t>(i);
  for (DType format : {DType::e4m3, DType::e5m2}) {
    for (float scale : kScales) expect_same_cast(x, format, scale);
  }
}

/// FP32 numbers of ascending size, with ties and their neighbours, zeros of both signs among them.
TEST(CastFastPath, Fp32NumbersOfNeighbouringSizes) {
  constexpr std::int64_t kSize = 1 << 16;
  const Tensor x = reference().allocate(DType::f32, {1, kSize});
  const Random random(3, 1);
  for (std::int64_t i = 0; i < kSize; ++i) {
    const auto tie = static_cast<std::uint32_t>(i) << 16;  // exponent and upper mantissa ascend
    const auto near = static_cast<std::uint32_t>(random.below(i, 3)) - 1;  // -1, 0, 1 in the last place
    const std::uint32_t bits = i % 97 == 0 ? tie & 0x80000000u : tie + near;
    std::memcpy(x.data<float>() + i, &bits, 4);
  }
  for (DType format : {DType::e4m3, DType::e5m2}) {
    for (float scale : kScales) expect_same_cast(x, format, scale);
  }
}

/// Ordinary values: the path that training takes, with all sizes of tails.
TEST(CastFastPath, NormalNumbersOfAllLengths) {
  for (DType dtype : {DType::bf16, DType::f32}) {
    for (std::int64_t cols : {63, 64, 65, 127, 128, 1023, 1024, 1087}) {
      const Tensor x = random_matrix({3, cols, dtype, false}, 5);
      for (DType format : {DType::e4m3, DType::e5m2}) expect_same_cast(x, format, 20.0f);
    }
  }
}

/// Results too large for the caches, at an address that is no multiple of a cache line, and rows that begin anywhere.
TEST(CastFastPath, SlowLargeResultsAreTheSame) {
  for (DType dtype : {DType::bf16, DType::f32}) {
    const Tensor x = random_matrix({2053, 4099, dtype, false}, 6);
    expect_same_cast(x, DType::e4m3, 20.0f);
  }
}

/// A producer's results go to memory and to FP8 in one pass; both in stretches and in tails.
TEST(CastFastPath, ProducersCastWhatTheyStore) {
  for (std::int64_t cols : {64, 96, 160, 1090}) {
    const MatrixCase c{37, cols, DType::bf16, false};
    const Tensor g = random_matrix(c, 1), u = random_matrix(c, 2);
    for (const auto& backend : cpu_backends()) {
      Output both = cast_output(c.rows, cols, DType::e4m3, 30.0f);
      both.values = empty_matrix(c);
      backend->activation(Activation::swiglu, g, u, both);
      const Output separate = cast_output(c.rows, cols, DType::e4m3, 30.0f);
      backend->cast(both.values, separate);
      EXPECT_TRUE(bytes_of(both.quantized.bytes) == bytes_of(separate.quantized.bytes))
          << backend->describe();
      EXPECT_TRUE(bytes_of(both.quantizer.counters) == bytes_of(separate.quantizer.counters))
          << backend->describe();
      EXPECT_TRUE(bytes_of(both.quantizer.amax) == bytes_of(separate.quantizer.amax)) << backend->describe();
    }
  }
}

}  // namespace
}  // namespace quaver::testing
