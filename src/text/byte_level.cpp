#include "text/byte_level.h"

#include "text/utf8.h"

namespace quaver {
namespace {

bool is_printable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

/// Printable characters are their own bytes, so that the largest character is 0x100 plus the other bytes.
constexpr std::size_t kCharacters = 512;

std::array<std::int16_t, kCharacters> make_inverse() {
  std::array<std::int16_t, kCharacters> inverse;
  inverse.fill(-1);
  for (std::int16_t byte = 0; byte < 256; ++byte) {
    inverse[byte_level_alphabet()[static_cast<std::size_t>(byte)]] = byte;
  }
  return inverse;
}

}  // namespace

const std::array<char32_t, 256>& byte_level_alphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> characters{};
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      characters[static_cast<std::size_t>(byte)] = is_printable(byte) ? static_cast<char32_t>(byte) : next++;
    }
    return characters;
  }();
  return alphabet;
}

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_utf8(text, byte_level_alphabet()[static_cast<unsigned char>(byte)]);
  return text;
}

std::optional<std::string> from_byte_level(std::string_view text) {
  static const auto inverse = make_inverse();
  std::string bytes;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0) return std::nullopt;
    const char32_t character = first_code_point(text);
    if (character >= kCharacters || inverse[character] < 0) return std::nullopt;
    bytes += static_cast<char>(inverse[character]);
    text.remove_prefix(length);
  }
  return bytes;
}

}  // namespace quaver
