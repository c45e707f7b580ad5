/// Text to tokens and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"

namespace quaver {

/// Encodes one document after another. Has caches of its own: one object serves one thread.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  /// Appends the tokens of `text`, which may be any bytes. Added tokens are recognised in it. No document
  /// token is appended.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& tokens) = 0;
};

/// A vocabulary and how text is cut into it. Immutable.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// All ids are below it. Some ids may belong to no token.
  std::int64_t vocab() const { return static_cast<std::int64_t>(tokens_.size()); }
  /// The token before every document, which so ends the one before it. Its bytes are none.
  std::int32_t document_token() const { return document_token_; }
  const std::vector<AddedToken>& added_tokens() const { return added_tokens_; }
  /// The bytes a token stands for; none for an id of no token. Throws Error(data) for an id that is not in
  /// [0, vocab).
  std::string_view bytes_of(std::int32_t token) const;

  /// An object of this tokenizer, which must outlive it.
  virtual std::unique_ptr<TextEncoder> make_encoder() const = 0;

  /// Both for short texts: a tokenizer's encoder starts with an empty cache.
  std::vector<std::int32_t> encode(std::string_view text) const;
  std::string decode(std::span<const std::int32_t> tokens) const;

 protected:
  /// `tokens`: the bytes of each id.
  Tokenizer(std::vector<std::string> tokens, std::vector<AddedToken> added, std::int32_t document_token);

 private:
  std::vector<std::string> tokens_;
  std::vector<AddedToken> added_tokens_;
  std::int32_t document_token_;
};

/// Largest vocabulary accepted in a file.
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 24;
/// Ids may leave gaps, but a file of some bytes may not ask for millions of empty places. Throws Error(data), beginning with
/// `where` and the line's number (0: none), if the largest id leaves more than kMostUnusedIds of a file's ids unused.
constexpr std::int64_t kMostUnusedIds = std::int64_t{1} << 16;
void check_largest_id(std::int64_t largest, std::size_t tokens, std::string_view where, std::size_t line = 0);

/// The word that names the byte tokenizer.
constexpr const char* kBytesTokenizer = "bytes";

/// `source` is "bytes" (ids 0 to 255 are bytes, 256 is the document token), or the path of a byte-level
/// `tokenizer.json`, a tiktoken file, a SentencePiece model, or a folder with a tokenizer.json or
/// tokenizer.model. `document_token` is the text of the token to put before documents; empty: the first of
/// the usual ones that the tokenizer has. Throws Error(data).
std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& source,
                                                const std::string& document_token = "");

/// The file that `source` names, for a source that is not "bytes".
std::string tokenizer_file(const std::string& source);

/// A tokenizer from the content of a file; `name` stands for it in messages.
std::shared_ptr<const Tokenizer> parse_tokenizer(const std::string& content, const std::string& name,
                                                 const std::string& document_token = "");

/// The id of the token `wanted`, or if that is empty, of the first usual document token among `added`.
/// Throws Error(data) when there is none.
std::int32_t choose_document_token(const std::vector<AddedToken>& added, const std::string& wanted);

}  // namespace quaver
