#include "quaver/fp8_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quaver/error.h"

namespace quaver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Encoding {
  float value;
  int e4m3, e5m2;
};

TEST(Fp8Format, EncodesTheContractsExamples) {
  const Encoding examples[] = {
      {-0.0f, 0x80, 0x80},
      {1.0625f, 0x38, 0x3c},
      {1.125f, 0x39, 0x3c},
      {1.1875f, 0x3a, 0x3d},
      {1.375f, 0x3b, 0x3e},
      {0.3952f, 0x2d, 0x36},
      {456.0f, 0x7e, 0x5f},
      {464.0f, 0x7e, 0x5f},
      {480.0f, 0x7e, 0x60},
      {1e30f, 0x7e, 0x7b},
      {kInfinity, 0x7e, 0x7b},
      {-kInfinity, 0xfe, 0xfb},
      {kNan, 0x7f, 0x7f},
      {-kNan, 0x7f, 0x7f},
      {0x1p-10f, 0x00, 0x14},
      {0x1.000002p-10f, 0x01, 0x14},
      {0x1.8p-9f, 0x02, 0x1a},
      {0x1.ep-7f, 0x08, 0x24},
      {0x1.cp-7f, 0x07, 0x23},
      {0x1p-17f, 0x00, 0x00},
      {0x1.000002p-17f, 0x00, 0x01},
      {61440.0f, 0x7e, 0x7b},
      {65536.0f, 0x7e, 0x7b},
      {0x1.8p-16f, 0x00, 0x02},
  };
  for (const auto& [value, e4m3, e5m2] : examples) {
    EXPECT_EQ(fp8_encode(DType::e4m3, value), e4m3) << value;
    EXPECT_EQ(fp8_encode(DType::e5m2, value), e5m2) << value;
  }
}

TEST(Fp8Format, DecodesTheTableOfTheFormats) {
  EXPECT_EQ(fp8_max(DType::e4m3), 448.0f);
  EXPECT_EQ(fp8_max(DType::e5m2), 57344.0f);
  EXPECT_EQ(fp8_decode(DType::e4m3, 0x08), 0x1p-6f);
  EXPECT_EQ(fp8_decode(DType::e4m3, 0x01), 0x1p-9f);
  EXPECT_EQ(fp8_decode(DType::e5m2, 0x04), 0x1p-14f);
  EXPECT_EQ(fp8_decode(DType::e5m2, 0x01), 0x1p-16f);
  EXPECT_EQ(fp8_decode(DType::e5m2, 0x7C), kInfinity);
  EXPECT_EQ(fp8_decode(DType::e5m2, 0xFC), -kInfinity);
  for (const int nan : {0x7F, 0xFF}) EXPECT_TRUE(std::isnan(fp8_decode(DType::e4m3, nan)));
  for (const int nan : {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF})
    EXPECT_TRUE(std::isnan(fp8_decode(DType::e5m2, nan)));
}

TEST(Fp8Format, EveryFiniteByteSurvivesDecodeAndEncode) {
  for (const DType format : {DType::e4m3, DType::e5m2}) {
    for (int byte = 0; byte < 256; ++byte) {
      const float value = fp8_decode(format, byte);
      if (!std::isfinite(value)) continue;
      EXPECT_EQ(fp8_encode(format, value), byte) << name_of(format);
    }
  }
}

TEST(Fp8Format, RefusesOtherTypes) {
  EXPECT_THROW(fp8_max(DType::bf16), Error);
}

}  // namespace
}  // namespace quaver
