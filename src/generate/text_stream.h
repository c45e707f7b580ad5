/// Bytes of tokens as they are drawn, to text that can be shown.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "text/utf8.h"

namespace quaver {

/// Ends a text before the first stop string in it. What may be the beginning of one is held back until it is known, so stop
/// strings are found across the borders of tokens, and so is a character that is cut off. Of stop strings that end at the
/// same byte the longest counts.
class TextStream {
 public:
  /// No stop string may be empty.
  explicit TextStream(const std::vector<std::string>& stops);

  /// What can be shown after these bytes. Nothing more comes once the text is stopped.
  std::string append(std::string_view bytes);
  /// What was held back; call when no bytes follow.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  /// Knuth, Morris and Pratt: how much of the stop string the text ends with.
  struct Matcher {
    std::string stop;
    std::vector<std::size_t>
        fallback;  // [n]: longest proper prefix of stop that its first n + 1 bytes end with
    std::size_t matched = 0;
    /// Whether the text ends with the whole of it after this byte.
    bool advance(char byte);
  };

  std::vector<Matcher> matchers_;
  std::string held_;
  Utf8Stream characters_;
  bool stopped_ = false;
};

}  // namespace quaver
