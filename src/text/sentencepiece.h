/// SentencePiece models, through their own library. A build without it refuses them.
#pragma once

#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace quaver {

/// A token's bytes are its text with the space for the mark U+2581: decoding gives the text as the model
/// normalises it, with the space that most models put in front. Throws Error(data).
std::shared_ptr<const Tokenizer> parse_sentencepiece(const std::string& content,
                                                     const std::string& document_token);

}  // namespace quaver
