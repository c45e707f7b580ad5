/// The alphabet in which byte-level tokenizer files write bytes: printable bytes stand for themselves, the
/// others for U+0100 and up, in order.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace quaver {

/// The character of each byte.
const std::array<char32_t, 256>& byte_level_alphabet();

/// `bytes` written in the alphabet, as UTF-8.
std::string to_byte_level(std::string_view bytes);

/// The bytes that `text` stands for; none when a character is not of the alphabet.
std::optional<std::string> from_byte_level(std::string_view text);

}  // namespace quaver
