#include "text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "text/corpus.h"
#include "text/sentencepiece.h"
#include "text/tiktoken.h"
#include "text/tokenizer_json.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

// tokenizer.json of the largest vocabularies (262144 tokens) has about 33 MB.
constexpr std::uint64_t kMaxFile = std::uint64_t{256} << 20;

class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer() : Tokenizer(single_bytes(), {}, kDocumentToken) {}

  std::unique_ptr<TextEncoder> make_encoder() const override {
    struct Encoder : TextEncoder {
      void encode(std::string_view text, std::vector<std::int32_t>& tokens) override {
        for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
      }
    };
    return std::make_unique<Encoder>();
  }

 private:
  static std::vector<std::string> single_bytes() {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    tokens.emplace_back();
    return tokens;
  }
};

std::shared_ptr<const Tokenizer> parse(const std::string& content, const std::string& document_token) {
  const std::size_t first = content.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && content[first] == '{')
    return parse_tokenizer_json(content, document_token);
  if (looks_like_tiktoken(content)) return parse_tiktoken(content, document_token);
  return parse_sentencepiece(content, document_token);
}

}  // namespace

void check_largest_id(std::int64_t largest, std::size_t tokens, std::string_view where, std::size_t line) {
  if (largest - static_cast<std::int64_t>(tokens) < kMostUnusedIds) return;
  fail(ErrorKind::data, "{}{}: the id {} among {} tokens leaves more than {} ids unused", where,
       line > 0 ? fmt::format(" {}", line) : "", largest, tokens, kMostUnusedIds);
}

Tokenizer::Tokenizer(std::vector<std::string> tokens, std::vector<AddedToken> added,
                     std::int32_t document_token)
    : tokens_(std::move(tokens)), added_tokens_(std::move(added)), document_token_(document_token) {
  for (const AddedToken& token : added_tokens_) {
    const auto id = static_cast<std::size_t>(token.id);
    check_largest_id(token.id, tokens_.size() + added_tokens_.size(), "added tokens");
    if (id >= tokens_.size()) tokens_.resize(id + 1);
    tokens_[id] = token.text;
  }
  tokens_.at(static_cast<std::size_t>(document_token)).clear();
}

std::string_view Tokenizer::bytes_of(std::int32_t token) const {
  if (token < 0 || token >= vocab())
    fail(ErrorKind::data, "token {}: expected an id in [0, {})", token, vocab());
  return tokens_[static_cast<std::size_t>(token)];
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> tokens;
  make_encoder()->encode(text, tokens);
  return tokens;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) text += bytes_of(token);
  return text;
}

std::string tokenizer_file(const std::string& source) {
  std::error_code ignored;
  if (!fs::is_directory(source, ignored)) return source;
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    const std::string path = source + "/" + name;
    if (fs::exists(path, ignored)) return path;
  }
  fail(ErrorKind::data, "{}: holds neither tokenizer.json nor tokenizer.model", source);
}

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& source,
                                                const std::string& document_token) {
  if (source == kBytesTokenizer) {
    require(document_token.empty(), "data.document_token: byte tokens have no token \"{}\"", document_token);
    return std::make_shared<ByteTokenizer>();
  }
  const std::string path = tokenizer_file(source);
  const std::uint64_t size = InputFile(path).size();
  if (size > kMaxFile)
    fail(ErrorKind::data, "{}: {} bytes are too many for a tokenizer; at most {} are read", path, size,
         kMaxFile);
  return parse_tokenizer(read_file(path), path, document_token);
}

std::shared_ptr<const Tokenizer> parse_tokenizer(const std::string& content, const std::string& name,
                                                 const std::string& document_token) try {
  return parse(content, document_token);
} catch (const Error& error) {
  fail(error.kind(), "{}: {}", name, error.what());
}

std::int32_t choose_document_token(const std::vector<AddedToken>& added, const std::string& wanted) {
  static const std::vector<std::string> usual = {
      "<|document|>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<s>"};
  const std::vector<std::string> names = wanted.empty() ? usual : std::vector{wanted};
  for (const std::string& name : names) {
    for (const AddedToken& token : added) {
      if (token.text == name) return token.id;
    }
  }
  std::string known;
  for (const AddedToken& token : added) {
    if (known.size() < 200) known += (known.empty() ? "" : ", ") + token.text;
  }
  fail(ErrorKind::data,
       "no token to put before documents: expected an added token {}, found {}. Hint: name one with "
       "data.document_token",
       fmt::join(names, " or "), known.empty() ? "none" : known);
}

}  // namespace quaver
