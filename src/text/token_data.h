/// The data of a run as tokens: text encoded by a tokenizer, or shards.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/corpus.h"
#include "text/token_stream.h"
#include "text/tokenizer.h"

namespace quaver {

/// What batches must know of tokens.
struct TokenRules {
  std::int64_t vocab = kByteVocab;               ///< ids are below it
  std::int32_t document_token = kDocumentToken;  ///< before every document; -1: not known
  bool document_mask = true;                     ///< attention does not cross document boundaries
  std::vector<std::int32_t> token_bytes;         ///< bytes of text that each id stands for; empty: not known
};

/// Rules of a tokenizer's tokens.
TokenRules rules_of(const Tokenizer& tokenizer, bool document_mask);

struct TokenData {
  TokenStream train, validation;
  TokenRules rules;
};

/// The tokenizer that config.tokenizer names; null for "none". Throws Error(data).
std::shared_ptr<const Tokenizer> load_tokenizer(const DataConfig& config);

/// Loads and splits. Text is encoded into a temporary file; shards stay where they are, and nothing is ever
/// in memory as a whole. Validation data is: of text, the documents with `is_validation`; of shards, the
/// files with "val" in their names, or if there are none, the last config.val_fraction of all tokens.
/// Throws Error(usage) when the tokenizer's ids do not fit model_vocab, and Error(data) when a split holds
/// fewer than context + 1 tokens.
TokenData load_token_data(const DataConfig& config, std::int64_t context, std::int64_t model_vocab);

/// Writes shards `train_000000.bin`, ... and `val_000000.bin`, ... of config's text to a folder, with a copy
/// of the tokenizer's file. A shard ends with the document in which it reaches `shard_tokens`.
struct WrittenShards {
  std::int64_t documents = 0, bytes = 0, train_tokens = 0, validation_tokens = 0;
  int files = 0;
};
WrittenShards write_token_shards(const DataConfig& config, const std::string& folder,
                                 std::int64_t shard_tokens);

/// data.tokenizer of tokens whose tokenizer is not known.
inline constexpr const char* kUnknownTokenizer = "none";

/// Whether data.tokenizer names a file or folder: it is neither "bytes" nor "none".
bool names_tokenizer_file(const std::string& tokenizer);

/// Copies the tokenizer's file to a folder as tokenizer.json or tokenizer.model; nothing for "bytes" and
/// "none".
void copy_tokenizer(const std::string& tokenizer, const std::string& folder);

}  // namespace quaver
