#include "ops/cuda/cast_trace.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace quaver::cuda {
namespace {

float number(unsigned bits) {
  return low_half(bits);
}

/// Every sign and exponent with the ends of its mantissas: zeros, denormals, infinities and NaN among them.
std::vector<unsigned> telling_bits() {
  std::vector<unsigned> all;
  for (unsigned high = 0; high < 512; ++high) {
    for (const unsigned mantissa : {0u, 1u, 64u, 127u}) all.push_back(high << 7 | mantissa);
  }
  return all;
}

bool is_nan(unsigned bits) {
  return (bits & 0x7FFF) > 0x7F80;
}

TEST(CudaBf16Pairs, ComparesBothHalvesAsNumbers) {
  const auto all = telling_bits();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const unsigned low = all[i], high = all[(i * 37 + 11) % all.size()], pair = low | high << 16;
    for (const unsigned limit : {0u, 0x0001u, 0x3F80u, 0x43E0u, 0x7F7Fu, 0x7F80u}) {
      const auto is_at_most = [&](unsigned bits) { return std::fabs(number(bits)) <= number(limit); };
      EXPECT_EQ(both_at_most(pair, limit * 0x10001u), is_at_most(low) && is_at_most(high))
          << pair << " " << limit;
    }
    EXPECT_EQ(holds_zero(pair), number(low) == 0 || number(high) == 0) << pair;

    const unsigned other = all[(i * 101 + 5) % all.size()] * 0x10001u;
    const unsigned larger = larger_magnitudes(pair, other) & kMagnitudes;
    const unsigned smaller = smaller_magnitudes(pair, other) & kMagnitudes;
    for (const int half : {0, 16}) {
      const unsigned a = pair >> half & 0xFFFF, b = other >> half & 0xFFFF;
      const unsigned most = larger >> half & 0xFFFF, least = smaller >> half & 0xFFFF;
      if (is_nan(a) || is_nan(b)) {
        EXPECT_TRUE(is_nan(most)) << a << " " << b;
        if (!(is_nan(a) && is_nan(b))) {
          EXPECT_EQ(least, (is_nan(a) ? b : a) & 0x7FFF) << a << " " << b;
        }
        continue;
      }
      EXPECT_EQ(number(most), std::fmax(std::fabs(number(a)), std::fabs(number(b))));
      EXPECT_EQ(number(least), std::fmin(std::fabs(number(a)), std::fabs(number(b))));
    }
  }
}

/// The limit promises that nothing up to it saturates; that it is close keeps casts from looking at numbers one by one.
TEST(CudaCastScale, LimitsAreFiniteDoNotSaturateAndLieCloseBelowTheLargest) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const Fp8 format : {Fp8::e4m3, Fp8::e5m2}) {
    std::vector<float> factors = {1, 3, 0.7f, 448, 57344, 1e-40f, 1e-38f, 1e30f, kLargest};
    for (int exponent = -126; exponent < 127; ++exponent)
      for (const float mantissa : {1.0f, 1.2345f, 1.9999999f})
        factors.push_back(std::ldexp(mantissa, exponent));
    for (const float factor : factors) {
      const unsigned limit = cast_scale(format, factor).limits & 0xFFFF;
      EXPECT_EQ(cast_scale(format, factor).limits >> 16, limit);
      EXPECT_LT(limit, 0x7F80u) << factor;
      EXPECT_LE(number(limit) * factor, largest_fp8(format)) << factor;
      const unsigned beyond = limit + 3;  // two places for the estimate, one for the number that is too large
      if (limit > 0 && beyond < 0x7F80) {
        EXPECT_GT(number(beyond) * factor, largest_fp8(format)) << factor;
      }
    }
  }
}

}  // namespace
}  // namespace quaver::cuda
