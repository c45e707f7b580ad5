/// Any bytes as a tokenizer file, a zero byte, and a text: refused with an Error, or loaded, and then the text
/// is encoded into ids that can be decoded.
#include <cstdlib>
#include <string>

#include "fuzz/target.h"
#include "quaver/error.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const std::string file(input.substr(0, end));
  const std::string text(end == std::string_view::npos ? "the text, 12 \xF0\x9F\x98\x80\xFF"
                                                       : input.substr(end + 1));
  try {
    const auto tokenizer = quaver::parse_tokenizer(file, "input");
    const auto tokens = tokenizer->encode(text);
    for (const std::int32_t token : tokens) {
      if (token < 0 || token >= tokenizer->vocab()) std::abort();
    }
    (void)tokenizer->decode(tokens);
  } catch (const quaver::Error&) {
  }
  return 0;
}
