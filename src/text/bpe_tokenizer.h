/// Byte-level BPE tokenizers, whatever file they came from.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/splitter.h"
#include "text/tokenizer.h"

namespace quaver {

struct BpeDefinition {
  std::vector<std::string> tokens;        ///< the bytes of each id; empty for ids that bytes cannot become
  std::vector<std::string> other_tokens;  ///< as long: tokens of the vocabulary that are no bytes, as text
  std::vector<BpeMerge> merges;
  bool whole_pieces = false;  ///< see BpeModel
  std::vector<SplitStage> stages;
  bool nfc = false;  ///< text is put into Unicode's normal form C first
  std::vector<AddedToken> added;
};

/// Bytes that are not UTF-8 become one token each, so that every text can be decoded to its own bytes (unless
/// it is normalised). Throws Error(data).
std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeDefinition definition, std::int32_t document_token);

/// `text`, which must be UTF-8, in normal form C.
std::string normalize_nfc(std::string_view text);

}  // namespace quaver
