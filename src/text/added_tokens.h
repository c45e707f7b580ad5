/// Tokens that stand for themselves wherever they occur in a text, before anything else is done to it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace quaver {

struct AddedToken {
  std::int32_t id = 0;
  std::string text;
  bool special = false;     ///< is control, not text
  bool normalized = false;  ///< is looked for after the text was normalised
};

/// Finds added tokens: the leftmost occurrence, of several there the longest.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  /// Calls `text(part)` and `token(id)` for the parts of `whole`, in order.
  template <typename Text, typename Token>
  void split(std::string_view whole, Text text, Token token) const {
    while (!whole.empty()) {
      const Match match = find(whole);
      if (match.begin > 0) text(whole.substr(0, match.begin));
      if (match.length > 0) token(match.id);
      whole.remove_prefix(match.begin + match.length);
    }
  }

 private:
  struct Match {
    std::size_t begin, length;  ///< length 0: none; begin is then the text's size
    std::int32_t id;
  };
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  Match find(std::string_view text) const;

  std::array<bool, 256> first_bytes_{}, second_bytes_{};  // of all tokens; a second byte may be missing
  std::map<std::size_t, std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>>, std::greater<>>
      by_length_;
};

}  // namespace quaver
