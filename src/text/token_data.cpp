#include "text/token_data.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "text/token_shard.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

int width_for(const Tokenizer& tokenizer) {
  return tokenizer.vocab() <= 1 << 16 ? 2 : 4;
}

void check_vocab(const DataConfig& config, const Tokenizer* tokenizer, std::int64_t model_vocab) {
  if (!tokenizer || tokenizer->vocab() <= model_vocab) return;
  const std::int64_t round = (tokenizer->vocab() + 127) / 128 * 128;
  fail(ErrorKind::usage,
       "model.vocab: expected at least {} for data.tokenizer = \"{}\", found {}. Hint: model.vocab={}, or {} "
       "for faster matrix products",
       tokenizer->vocab(), config.tokenizer, model_vocab, tokenizer->vocab(), round);
}

/// A split while it is encoded.
class Split {
 public:
  explicit Split(int width) : writer_(TokenWriter::temporary(width)), width_(width) {}

  void add(std::span<const std::int32_t> tokens) {
    writer_.append(tokens);
    lengths_.push_back(static_cast<std::int64_t>(tokens.size()));
  }

  TokenStream finish() {
    const MappedFile file(writer_.release(), "temporary tokens");
    TokenStream stream;
    std::int64_t offset = 0;
    for (const std::int64_t length : lengths_) {
      stream.append(file, offset, length, width_);
      offset += length * width_;
    }
    return stream;
  }

 private:
  TokenWriter writer_;
  int width_;
  std::vector<std::int64_t> lengths_;
};

/// Calls `visit(tokens, text)` with every document's tokens, its document token first.
template <typename Visit>
void encode_documents(const DataConfig& config, const Tokenizer& tokenizer, Visit visit) {
  const auto encoder = tokenizer.make_encoder();
  std::vector<std::int32_t> tokens;
  visit_documents(config, [&](const std::string&, std::string_view text) {
    tokens.assign(1, tokenizer.document_token());
    encoder->encode(text, tokens);
    visit(std::as_const(tokens), text);
  });
}

void load_text(const DataConfig& config, const Tokenizer& tokenizer, TokenData& data) {
  Split train(width_for(tokenizer)), validation(width_for(tokenizer));
  encode_documents(config, tokenizer, [&](const std::vector<std::int32_t>& tokens, std::string_view text) {
    (is_validation(text, config.val_fraction) ? validation : train).add(tokens);
  });
  data.train = train.finish();
  data.validation = validation.finish();
}

void load_shards(const DataConfig& config, TokenData& data) {
  TokenStream all;
  for (const DataFile& file : find_data_files(config.path)) {
    if (!file.path.ends_with(".bin")) continue;
    const MappedFile mapped(file.path);
    const ShardLayout layout = parse_shard(mapped.bytes(), file.path);
    const bool named_val = fs::path(file.path).filename().string().find("val") != std::string::npos;
    (named_val ? data.validation : all).append(mapped, layout.offset, layout.tokens, layout.width);
  }
  const auto held = data.validation.size() > 0
                        ? 0
                        : static_cast<std::int64_t>(config.val_fraction * static_cast<double>(all.size()));
  if (held > 0) data.validation = all.slice(all.size() - held, all.size());
  data.train = all.slice(0, all.size() - held);
}

void check_split(const TokenStream& stream, const char* split, const DataConfig& config,
                 std::int64_t context) {
  if (stream.size() > context) return;
  std::error_code ignored;
  fail(ErrorKind::data,
       "{}: the {} split has {} tokens in {} documents; one sequence needs model.context + 1 = {}. Give more "
       "text, change data.val_fraction = {}{}, or lower model.context",
       config.path, split, stream.size(), stream.segments(), context + 1, config.val_fraction,
       fs::is_directory(config.path, ignored) ? ""
                                              : fmt::format(" or data.piece_bytes = {}", config.piece_bytes));
}

/// The shards of one split, begun when they are needed.
class ShardSeries {
 public:
  ShardSeries(std::string prefix, int width, std::int64_t shard_tokens)
      : prefix_(std::move(prefix)), width_(width), limit_(shard_tokens) {}

  void add(std::span<const std::int32_t> tokens) {
    tokens_ += static_cast<std::int64_t>(tokens.size());
    while (!tokens.empty()) {
      if (!writer_) writer_.emplace(fmt::format("{}_{:06}.bin", prefix_, files_++), width_);
      const auto here =
          std::min<std::size_t>(tokens.size(), static_cast<std::size_t>(kMaxShardTokens - writer_->tokens()));
      writer_->append(tokens.first(here));
      tokens = tokens.subspan(here);
      if (writer_->tokens() >= limit_ || writer_->tokens() == kMaxShardTokens) finish();
    }
  }
  void finish() {
    if (writer_) writer_->finish();
    writer_.reset();
  }
  std::int64_t tokens() const { return tokens_; }
  int files() const { return files_; }

 private:
  std::string prefix_;
  int width_;
  std::int64_t limit_, tokens_ = 0;
  int files_ = 0;
  std::optional<TokenWriter> writer_;
};

}  // namespace

TokenRules rules_of(const Tokenizer& tokenizer, bool document_mask) {
  TokenRules rules{tokenizer.vocab(), tokenizer.document_token(), document_mask, {}};
  for (std::int32_t id = 0; id < tokenizer.vocab(); ++id)
    rules.token_bytes.push_back(static_cast<std::int32_t>(tokenizer.bytes_of(id).size()));
  return rules;
}

std::shared_ptr<const Tokenizer> load_tokenizer(const DataConfig& config) {
  if (config.tokenizer == kUnknownTokenizer) return nullptr;
  return load_tokenizer(config.tokenizer, config.document_token == "auto" ? "" : config.document_token);
}

TokenData load_token_data(const DataConfig& config, std::int64_t context, std::int64_t model_vocab) {
  const auto tokenizer = load_tokenizer(config);
  check_vocab(config, tokenizer.get(), model_vocab);
  TokenData data;
  data.rules =
      tokenizer ? rules_of(*tokenizer, config.document_mask) : TokenRules{model_vocab, -1, false, {}};
  if (detect_format(config) == DataFormat::tokens) {
    require(
        tokenizer || !config.document_mask,
        "data.document_mask: data.tokenizer = \"none\" does not say where documents begin; expected false");
    load_shards(config, data);
  } else {
    require(tokenizer != nullptr, "data.tokenizer: \"none\" is for token shards, but {} holds text",
            config.path);
    load_text(config, *tokenizer, data);
  }
  check_split(data.train, "training", config, context);
  check_split(data.validation, "validation", config, context);
  return data;
}

WrittenShards write_token_shards(const DataConfig& config, const std::string& folder,
                                 std::int64_t shard_tokens) {
  const auto tokenizer = load_tokenizer(config);
  require(tokenizer && detect_format(config) != DataFormat::tokens,
          "tokenize: expected text and a tokenizer, found data of format tokens in {}", config.path);
  std::error_code ignored;
  require(!fs::exists(folder, ignored) || fs::is_empty(folder, ignored),
          "tokenize: {} is not empty; expected a new folder", folder);
  make_directories(folder);
  const int width = width_for(*tokenizer);
  ShardSeries train(folder + "/train", width, shard_tokens), validation(folder + "/val", width, shard_tokens);
  WrittenShards written;
  encode_documents(config, *tokenizer, [&](const std::vector<std::int32_t>& tokens, std::string_view text) {
    (is_validation(text, config.val_fraction) ? validation : train).add(tokens);
    ++written.documents;
    written.bytes += static_cast<std::int64_t>(text.size());
  });
  train.finish();
  validation.finish();
  copy_tokenizer(config.tokenizer, folder);
  written.train_tokens = train.tokens();
  written.validation_tokens = validation.tokens();
  written.files = train.files() + validation.files();
  return written;
}

bool names_tokenizer_file(const std::string& tokenizer) {
  return tokenizer != kBytesTokenizer && tokenizer != kUnknownTokenizer;
}

void copy_tokenizer(const std::string& tokenizer, const std::string& folder) {
  if (!names_tokenizer_file(tokenizer)) return;
  const std::string file = tokenizer_file(tokenizer);
  write_file_atomically(folder + (file.ends_with(".json") ? "/tokenizer.json" : "/tokenizer.model"),
                        read_file(file));
}

}  // namespace quaver
