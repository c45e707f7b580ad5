// In place of sentencepiece.cpp in a build without the library.
#include "base/check.h"
#include "text/sentencepiece.h"

namespace quaver {

std::shared_ptr<const Tokenizer> parse_sentencepiece(const std::string&, const std::string&) {
  fail(ErrorKind::data,
       "neither a tokenizer.json nor a tiktoken file, and this build reads no SentencePiece models. Hint: "
       "install libsentencepiece-dev and build again");
}

}  // namespace quaver
