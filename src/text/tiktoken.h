/// tiktoken's rank files: lines of a token's bytes in base64, a space, and its rank, which is its id.
#pragma once

#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace quaver {

/// Whether the first line has that form.
bool looks_like_tiktoken(const std::string& content);

/// The files hold neither the pattern nor the special tokens. Both follow from the number of ranks: of
/// r50k_base (GPT-2), p50k_base, cl100k_base, o200k_base, Llama 3 and Qwen. A file of any other size gets
/// cl100k_base's pattern and <|endoftext|> behind its last rank. Throws Error(data).
std::shared_ptr<const Tokenizer> parse_tiktoken(const std::string& content,
                                                const std::string& document_token);

}  // namespace quaver
