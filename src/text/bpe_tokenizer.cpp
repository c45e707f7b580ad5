#include "text/bpe_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/check.h"
#include "text/utf8.h"

namespace quaver {
namespace {

std::vector<AddedToken> normalized_tokens(const BpeDefinition& definition) {
  std::vector<AddedToken> found;
  for (AddedToken token : definition.added) {
    if (!token.normalized) continue;
    if (definition.nfc) token.text = normalize_nfc(token.text);
    found.push_back(std::move(token));
  }
  return found;
}

std::vector<AddedToken> verbatim_tokens(std::vector<AddedToken> added) {
  std::erase_if(added, [](const AddedToken& token) { return token.normalized; });
  return added;
}

bool is_ascii(char c) {
  return static_cast<unsigned char>(c) < 0x80;
}

/// Characters below U+0300 (bytes below 0xCC) neither combine nor change in normal form C.
bool is_inert(char c) {
  return static_cast<unsigned char>(c) < 0xCC;
}

/// The bytes of every id, of tokens that bytes cannot become too.
std::vector<std::string> all_tokens(const BpeDefinition& definition) {
  std::vector<std::string> tokens = definition.tokens;
  for (std::size_t id = 0; id < definition.other_tokens.size(); ++id) {
    if (tokens[id].empty()) tokens[id] = definition.other_tokens[id];
  }
  return tokens;
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(const BpeDefinition& definition, std::int32_t document_token)
      : Tokenizer(all_tokens(definition), definition.added, document_token),
        model(definition.tokens, definition.merges, definition.whole_pieces),
        splitter(definition.stages),
        verbatim(verbatim_tokens(definition.added)),
        normalized(normalized_tokens(definition)),
        nfc(definition.nfc) {}

  std::unique_ptr<TextEncoder> make_encoder() const override;

  const BpeModel model;
  const Splitter splitter;  // copied by each encoder
  const AddedTokenFinder verbatim, normalized;
  const bool nfc;
};

class BpeEncoder : public TextEncoder {
 public:
  explicit BpeEncoder(const BpeTokenizer& tokenizer) : tokenizer_(tokenizer), splitter_(tokenizer.splitter) {}

  void encode(std::string_view text, std::vector<std::int32_t>& tokens) override {
    while (!text.empty()) {
      const std::size_t valid = valid_utf8_prefix(text);
      encode_utf8(text.substr(0, valid), tokens);
      text.remove_prefix(valid);
      for (; !text.empty() && utf8_length(text) == 0; text.remove_prefix(1))
        tokens.push_back(tokenizer_.model.byte_token(static_cast<unsigned char>(text[0])));
    }
  }

 private:
  void encode_utf8(std::string_view text, std::vector<std::int32_t>& tokens) {
    const auto add = [&](std::int32_t id) { tokens.push_back(id); };
    tokenizer_.verbatim.split(
        text,
        [&](std::string_view part) {
          if (tokenizer_.nfc) normal_ = normalize_nfc(part);
          tokenizer_.normalized.split(
              tokenizer_.nfc ? std::string_view(normal_) : part,
              [&](std::string_view plain) {
                splitter_.split(plain, [&](std::string_view piece) { encode_piece(piece, tokens); });
              },
              add);
        },
        add);
  }

  void encode_piece(std::string_view piece, std::vector<std::int32_t>& tokens) {
    if (piece.size() > PieceCache::kLongestPiece) {
      tokenizer_.model.encode(piece, tokens, scratch_);
      return;
    }
    const PieceCache::Key key = PieceCache::key_of(piece);
    PieceCache::Entry& entry = cache_.entry(key);
    if (entry.key.low == key.low && entry.key.high == key.high) {
      tokens.insert(tokens.end(), entry.tokens, entry.tokens + entry.count);
      return;
    }
    const std::size_t before = tokens.size();
    tokenizer_.model.encode(piece, tokens, scratch_);
    const std::size_t count = tokens.size() - before;
    if (count > PieceCache::kMostTokens) return;
    entry.key = key;
    entry.count = static_cast<std::int32_t>(count);
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(before), count, entry.tokens);
  }

  const BpeTokenizer& tokenizer_;
  Splitter splitter_;
  PieceCache cache_;
  BpeModel::Scratch scratch_;
  std::string normal_;
};

std::unique_ptr<TextEncoder> BpeTokenizer::make_encoder() const {
  return std::make_unique<BpeEncoder>(*this);
}

void append_nfc(std::string& normal, std::string_view text) {
  utf8proc_uint8_t* bytes = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &bytes, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(bytes, std::free);
  if (size < 0) fail(ErrorKind::data, "normal form C: {}", utf8proc_errmsg(size));
  normal.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
}

}  // namespace

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition, std::int32_t document_token) {
  return std::make_shared<BpeTokenizer>(definition, document_token);
}

std::string normalize_nfc(std::string_view text) {
  std::string normal;
  const auto end = text.end();
  for (auto at = text.begin(); at != end;) {
    // No ASCII character combines with what stands before it: only the run from the last of them on matters.
    const auto changing = std::find_if_not(at, end, is_inert);
    auto begin = changing;
    while (begin != at && changing != end && !is_ascii(*begin)) --begin;
    const auto run_end = std::find_if(changing, end, is_ascii);
    normal.append(at, begin);
    if (changing != end) append_nfc(normal, {begin, run_end});
    at = run_end;
  }
  return normal;
}

}  // namespace quaver
