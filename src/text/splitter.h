/// Cuts text into the pieces that a tokenizer encodes one by one: regular expressions, one after another.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace quaver {

/// One regular expression. Its matches are pieces; so is the text between them, unless `drop_gaps`.
struct SplitStage {
  std::string pattern;
  bool drop_gaps = false;
};

/// The patterns of well-known tokenizers.
extern const char* const kGpt2Pattern;
extern const char* const kCl100kPattern;  ///< Llama 3 has the same
extern const char* const kQwenPattern;
extern const char* const kO200kPattern;

/// Patterns are those of Python's `tokenizers` (Oniguruma): \s is Unicode's White_Space, \p{L} and \p{N} its
/// categories. A copy shares the compiled patterns; one object serves one thread.
class Splitter {
 public:
  /// Throws Error(data) for a pattern that cannot be compiled.
  explicit Splitter(const std::vector<SplitStage>& stages);
  ~Splitter();
  Splitter(const Splitter& other);
  Splitter& operator=(const Splitter&) = delete;

  /// Calls `piece` with each piece of `text`, which must be UTF-8, in order. No piece is empty. Throws
  /// Error(data) when a pattern needs too many steps for this text.
  template <typename Piece>
  void split(std::string_view text, Piece piece) {
    prepare(text);
    split_stage(0, text, piece);
  }

 private:
  class Stage;

  /// The next match in `text` at or after `from` that is not empty; {size, size} when there is none.
  struct Range {
    std::size_t begin, end;
  };
  Range next_match(std::size_t stage, std::string_view text, std::size_t from);
  bool drops_gaps(std::size_t stage) const;
  /// Chooses the form of the patterns that is right for `text`.
  void prepare(std::string_view text);

  template <typename Piece>
  void split_stage(std::size_t stage, std::string_view text, Piece& piece) {
    if (stage == stages_.size()) {
      if (!text.empty()) piece(text);
      return;
    }
    for (std::size_t at = 0; at < text.size();) {
      const Range match = next_match(stage, text, at);
      if (match.begin > at && !drops_gaps(stage))
        split_stage(stage + 1, text.substr(at, match.begin - at), piece);
      if (match.end > match.begin)
        split_stage(stage + 1, text.substr(match.begin, match.end - match.begin), piece);
      at = match.end;
    }
  }

  std::vector<std::unique_ptr<Stage>> stages_;
};

}  // namespace quaver
