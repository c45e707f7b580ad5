/// Byte tokens as the tokenizer files of Hugging Face.
#pragma once

#include <cstdint>
#include <string>

namespace quaver {

/// The text that stands for the document token in tokenizer.json.
inline constexpr const char* kDocumentText = "<|document|>";

/// tokenizer.json: byte-level BPE without merges, whose ids are Quaver's: bytes 0 to 255, and 256 for the
/// document token, which it puts before every text, as `quaver sample` does.
std::string byte_tokenizer_json();

/// tokenizer_config.json beside it. `context` is the model's.
std::string byte_tokenizer_config_json(std::int64_t context);

}  // namespace quaver
