#include "base/glob.h"

#include <vector>

#include "base/check.h"

namespace quaver {
namespace {

/// The places in the text that the pattern read so far can have reached: ends[i] stands for the first i characters.
using Ends = std::vector<bool>;

class Matcher {
 public:
  Matcher(std::string_view pattern, std::string_view text) : pattern_(pattern), text_(text) {}

  bool matches() {
    Ends begin(text_.size() + 1, false);
    begin[0] = true;
    const Ends ends = sequence(std::move(begin), 0);
    require(at_ == pattern_.size(), "pattern \"{}\": a }} without its {{", pattern_);
    return ends.back();
  }

 private:
  /// Reads up to the end of the pattern, or of this alternative.
  Ends sequence(Ends ends, int depth) {
    require(depth < kDeepest, "pattern \"{}\": braces nested more than {} deep", pattern_, kDeepest);
    for (; at_ < pattern_.size(); ++at_) {
      const char c = pattern_[at_];
      if (c == '}' || (c == ',' && depth > 0)) break;
      ends = c == '{' ? alternatives(ends, depth) : c == '*' ? any(std::move(ends)) : one(ends, c);
    }
    return ends;
  }

  /// From a { to its }, which is left to be read.
  Ends alternatives(const Ends& begin, int depth) {
    Ends ends(begin.size(), false);
    do {
      ++at_;
      const Ends reached = sequence(begin, depth + 1);
      for (std::size_t i = 0; i < ends.size(); ++i) ends[i] = ends[i] || reached[i];
    } while (at_ < pattern_.size() && pattern_[at_] == ',');
    require(at_ < pattern_.size(), "pattern \"{}\": a {{ without its }}", pattern_);
    return ends;
  }

  static Ends any(Ends ends) {
    for (std::size_t i = 1; i < ends.size(); ++i) ends[i] = ends[i] || ends[i - 1];
    return ends;
  }

  Ends one(const Ends& begin, char c) const {
    Ends ends(begin.size(), false);
    for (std::size_t i = 0; i < text_.size(); ++i) ends[i + 1] = begin[i] && (c == '?' || c == text_[i]);
    return ends;
  }

  static constexpr int kDeepest = 16;
  std::string_view pattern_, text_;
  std::size_t at_ = 0;
};

}  // namespace

bool glob_matches(std::string_view pattern, std::string_view text) {
  return Matcher(pattern, text).matches();
}

}  // namespace quaver
