#include "generate/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace quaver {

TextStream::TextStream(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    require(!stop.empty(), "stop: a stop string is empty");
    // The table of the string is built by matching it against itself.
    Matcher matcher{stop, std::vector<std::size_t>(stop.size()), 0};
    for (std::size_t i = 1; i < stop.size(); ++i) {
      matcher.advance(stop[i]);
      matcher.fallback[i] = matcher.matched;
    }
    matcher.matched = 0;
    matchers_.push_back(std::move(matcher));
  }
}

bool TextStream::Matcher::advance(char byte) {
  while (matched > 0 && stop[matched] != byte) matched = fallback[matched - 1];
  if (stop[matched] == byte) ++matched;
  return matched == stop.size();
}

std::string TextStream::append(std::string_view bytes) {
  if (matchers_.empty()) return characters_.append(bytes);
  std::string shown;
  for (const char byte : bytes) {
    if (stopped_) break;
    held_ += byte;
    std::size_t ending = 0, partial = 0;
    for (Matcher& matcher : matchers_) {
      if (matcher.advance(byte)) ending = std::max(ending, matcher.stop.size());
      partial = std::max(partial, matcher.matched);
    }
    stopped_ = ending > 0;
    const std::size_t known = held_.size() - (stopped_ ? ending : partial);
    shown += held_.substr(0, known);
    held_.erase(0, known);
  }
  if (!stopped_) return characters_.append(shown);
  held_.clear();
  shown = characters_.append(shown);
  return shown + characters_.finish();
}

std::string TextStream::finish() {
  return characters_.append(std::exchange(held_, {})) + characters_.finish();
}

}  // namespace quaver
