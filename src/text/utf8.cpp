#include "text/utf8.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace quaver {
namespace {

/// The lowest and highest second byte after `lead`, and how many bytes the character has; 0: none.
struct Form {
  std::uint8_t length, low, high;
};

Form form_of(std::uint8_t lead) {
  if (lead < 0x80) return {1, 0, 0};
  if (lead < 0xC2 || lead > 0xF4) return {0, 0, 0};
  if (lead < 0xE0) return {2, 0x80, 0xBF};
  if (lead < 0xF0) {
    return {3, static_cast<std::uint8_t>(lead == 0xE0 ? 0xA0 : 0x80),
            static_cast<std::uint8_t>(lead == 0xED ? 0x9F : 0xBF)};
  }
  return {4, static_cast<std::uint8_t>(lead == 0xF0 ? 0x90 : 0x80),
          static_cast<std::uint8_t>(lead == 0xF4 ? 0x8F : 0xBF)};
}

/// Bytes at the start of `text` that agree with the form of its first byte.
std::size_t agreeing(std::string_view text, const Form& form) {
  std::size_t count = 1;
  for (; count < form.length && count < text.size(); ++count) {
    const auto byte = static_cast<std::uint8_t>(text[count]);
    const std::uint8_t low = count == 1 ? form.low : 0x80, high = count == 1 ? form.high : 0xBF;
    if (byte < low || byte > high) break;
  }
  return count;
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const Form form = form_of(static_cast<std::uint8_t>(text[0]));
  return form.length > 0 && agreeing(text, form) == form.length ? form.length : 0;
}

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t word = 0;
    if (text.size() - at >= sizeof(word)) {
      std::memcpy(&word, text.data() + at, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof(word);
        continue;
      }
    }
    const std::size_t length = utf8_length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

bool is_partial_utf8(std::string_view text) {
  if (text.empty()) return false;
  const Form form = form_of(static_cast<std::uint8_t>(text[0]));
  return text.size() < form.length && agreeing(text, form) == text.size();
}

char32_t first_code_point(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<std::uint8_t>(text[i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto push = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (code_point < 0x80) {
    push(code_point);
  } else if (code_point < 0x800) {
    push(0xC0 | code_point >> 6);
    push(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    push(0xE0 | code_point >> 12);
    push(0x80 | (code_point >> 6 & 0x3F));
    push(0x80 | (code_point & 0x3F));
  } else {
    push(0xF0 | code_point >> 18);
    push(0x80 | (code_point >> 12 & 0x3F));
    push(0x80 | (code_point >> 6 & 0x3F));
    push(0x80 | (code_point & 0x3F));
  }
}

std::string Utf8Stream::append(std::string_view bytes) {
  held_ += bytes;
  // Only the last three bytes can be the beginning of a character.
  for (std::size_t tail = std::min<std::size_t>(3, held_.size()); tail > 0; --tail) {
    if (!is_partial_utf8(std::string_view(held_).substr(held_.size() - tail))) continue;
    std::string whole = held_.substr(0, held_.size() - tail);
    held_.erase(0, whole.size());
    return whole;
  }
  return std::exchange(held_, {});
}

std::string Utf8Stream::finish() {
  return std::exchange(held_, {});
}

}  // namespace quaver
