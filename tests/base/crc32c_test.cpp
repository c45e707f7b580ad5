#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string_view>
#include <vector>

namespace quaver {
namespace {

std::uint32_t of(std::string_view text) {
  return crc32c(std::as_bytes(std::span(text)));
}

// RFC 3720, appendix B.4, and the catalogue's check value.
TEST(Crc32cTest, PublishedValues) {
  std::array<unsigned char, 32> bytes{};
  EXPECT_EQ(crc32c(std::as_bytes(std::span(bytes))), 0x8A9136AAu);
  bytes.fill(0xFF);
  EXPECT_EQ(crc32c(std::as_bytes(std::span(bytes))), 0x62A8AB43u);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i);
  EXPECT_EQ(crc32c(std::as_bytes(std::span(bytes))), 0x46DD794Eu);
  EXPECT_EQ(of("123456789"), 0xE3069283u);
  EXPECT_EQ(of(""), 0u);
}

TEST(Crc32cTest, InstructionTablesAndPiecesAgree) {
  std::mt19937_64 random(1);
  std::vector<std::byte> bytes(300);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (std::size_t begin = 0; begin < 16; ++begin) {
    for (std::size_t size = 0; begin + size <= bytes.size(); ++size) {
      const auto part = std::span(bytes).subspan(begin, size);
      const std::uint32_t crc = crc32c(part);
      ASSERT_EQ(crc32c_portable(part), crc) << begin << " " << size;
      ASSERT_EQ(crc32c(part.subspan(size / 3), crc32c(part.first(size / 3))), crc) << begin << " " << size;
    }
  }
}

}  // namespace
}  // namespace quaver
