/// Hugging Face's tokenizer.json, as far as it describes byte-level BPE.
#pragma once

#include <memory>
#include <string>

#include "text/bpe_tokenizer.h"
#include "text/tokenizer.h"

namespace quaver {

/// Accepts model BPE with merges in both spellings; normalizer NFC or none; pre-tokenizers ByteLevel, Split,
/// Digits and sequences of these; added tokens. What would encode otherwise than the file says is refused.
/// Post-processors (which add tokens around a text) are not applied. Throws Error(data).
std::shared_ptr<const Tokenizer> parse_tokenizer_json(const std::string& content,
                                                      const std::string& document_token);

/// A tokenizer.json that Python's `tokenizers` reads, for a definition of at most one stage.
std::string to_tokenizer_json(const BpeDefinition& definition);

}  // namespace quaver
