/// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quaver {

/// Bytes of the character at the start of `text`; 0 when there is none (text is empty, or begins with a byte
/// that begins no character, or with a character that is cut off).
std::size_t utf8_length(std::string_view text);

/// Bytes at the start of `text` that are UTF-8.
std::size_t valid_utf8_prefix(std::string_view text);

/// Whether `text` is the beginning of a character whose further bytes would make it valid.
bool is_partial_utf8(std::string_view text);

/// The code point of the character at the start of `text`, which must be valid.
char32_t first_code_point(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);

/// Passes bytes on as whole characters: what might be the beginning of one is held back until it is known.
/// Bytes that belong to no character are passed on as they are.
class Utf8Stream {
 public:
  /// What can be shown after `bytes` followed everything before.
  std::string append(std::string_view bytes);
  /// What was held back.
  std::string finish();

 private:
  std::string held_;
};

}  // namespace quaver
