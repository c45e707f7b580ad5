// Reads texts from stdin (each a length of 4 bytes, little-endian, then the bytes) and prints the tokens of each as
// a line, and as a second line the length of what they decode to and whether that is the text.
//
// usage: oracle_tokenize TOKENIZER
#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace {

bool read_text(std::string& text) {
  std::uint32_t size = 0;
  if (std::fread(&size, sizeof(size), 1, stdin) != 1) return false;
  text.resize(size);
  return std::fread(text.data(), 1, size, stdin) == size;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  const auto tokenizer = quaver::load_tokenizer(argv[1]);
  const auto encoder = tokenizer->make_encoder();
  for (std::string text; read_text(text);) {
    std::vector<std::int32_t> tokens;
    encoder->encode(text, tokens);
    const std::string decoded = tokenizer->decode(tokens);
    fmt::print("{}\n{} {}\n", fmt::join(tokens, " "), decoded.size(), decoded == text);
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
