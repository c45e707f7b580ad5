/// Byte-pair encoding learnt from text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/bpe_tokenizer.h"
#include "text/splitter.h"

namespace quaver {

/// Counts the pieces of a text, then merges the most frequent pair of neighbouring tokens until the
/// vocabulary is full. Of equally frequent pairs the one with the lower ids is first: the result depends on
/// the text alone, and is that of Python's `tokenizers`.
class BpeTrainer {
 public:
  /// Text is cut by `pattern` and, with `nfc`, normalised before. `special` become the first ids, the bytes
  /// in the order of their characters (text/byte_level.h) the next, and merges the others.
  BpeTrainer(std::string pattern, bool nfc, std::vector<std::string> special);

  /// Counts the pieces of a document. Bytes that are not UTF-8 are left out, and so are special tokens.
  void add(std::string_view text);

  /// The tokenizer with `vocab` ids, or fewer when no pair is left that occurs twice. Throws Error(usage)
  /// when `vocab` does not even hold the bytes and the special tokens.
  BpeDefinition train(std::int64_t vocab) const;

 private:
  std::string pattern_;
  bool nfc_;
  std::vector<AddedToken> special_;
  AddedTokenFinder finder_;
  Splitter splitter_;
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> counts_;
};

}  // namespace quaver
