#include "base/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace quaver {
namespace {

using Table = std::array<std::uint32_t, 256>;

/// tables[k][b]: the remainder of byte b followed by k zero bytes, for the reflected polynomial.
constexpr std::array<Table, 8> make_tables() {
  constexpr std::uint32_t kPolynomial = 0x82F63B78;
  std::array<Table, 8> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[k - 1][byte];
      tables[k][byte] = before >> 8 ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

constexpr std::array<Table, 8> kTables = make_tables();

static_assert(std::endian::native == std::endian::little, "words below are read as the bytes lie in memory");

std::uint64_t word_at(const std::byte* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

std::uint32_t update_by_tables(const std::byte* bytes, std::size_t size, std::uint32_t state) {
  for (; size >= 8; bytes += 8, size -= 8) {
    const std::uint64_t word = word_at(bytes) ^ state;
    state = 0;
    for (int k = 0; k < 8; ++k) state ^= kTables[7 - k][word >> 8 * k & 0xFF];
  }
  for (; size > 0; ++bytes, --size)
    state = state >> 8 ^ kTables[0][(state ^ std::to_integer<std::uint32_t>(*bytes)) & 0xFF];
  return state;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t update_by_instruction(const std::byte* bytes,
                                                                      std::size_t size, std::uint32_t state) {
  std::uint64_t wide = state;
  for (; size >= 8; bytes += 8, size -= 8) wide = _mm_crc32_u64(wide, word_at(bytes));
  state = static_cast<std::uint32_t>(wide);
  for (; size > 0; ++bytes, --size) state = _mm_crc32_u8(state, std::to_integer<unsigned char>(*bytes));
  return state;
}
bool has_instruction() {
  return __builtin_cpu_supports("sse4.2") != 0;
}
#elif defined(__ARM_FEATURE_CRC32)
std::uint32_t update_by_instruction(const std::byte* bytes, std::size_t size, std::uint32_t state) {
  for (; size >= 8; bytes += 8, size -= 8) state = __crc32cd(state, word_at(bytes));
  for (; size > 0; ++bytes, --size) state = __crc32cb(state, std::to_integer<unsigned char>(*bytes));
  return state;
}
bool has_instruction() {
  return true;
}
#else
std::uint32_t update_by_instruction(const std::byte* bytes, std::size_t size, std::uint32_t state) {
  return update_by_tables(bytes, size, state);
}
bool has_instruction() {
  return false;
}
#endif

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc) {
  const auto update = has_instruction() ? update_by_instruction : update_by_tables;
  return ~update(bytes.data(), bytes.size(), ~crc);
}

std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t crc) {
  return ~update_by_tables(bytes.data(), bytes.size(), ~crc);
}

}  // namespace quaver
