#include "fuzz/targets.h"

#include <array>
#include <cstdlib>
#include <string>

#include "quaver/error.h"
#include "text/token_shard.h"
#include "text/tokenizer.h"

namespace quaver::fuzz {
namespace {

/// Ends the program when something that must hold does not, as libFuzzer expects.
void check(bool condition) {
  if (!condition) std::abort();
}

/// A tokenizer file, a zero byte, and a text: what can be loaded encodes into ids that can be decoded.
void tokenizer(std::string_view input) {
  const std::size_t end = input.find('\0');
  const std::string file(input.substr(0, end));
  const std::string text(end == std::string_view::npos ? "the text, 12 \xF0\x9F\x98\x80\xFF"
                                                       : input.substr(end + 1));
  const auto loaded = parse_tokenizer(file, "input");
  for (const std::int32_t token : loaded->encode(text)) check(token >= 0 && token < loaded->vocab());
  (void)loaded->decode(loaded->encode(text));
}

/// A shard: the tokens of what is accepted lie in the file.
void token_shard(std::string_view input) {
  const auto content = std::as_bytes(std::span(input));
  const ShardLayout layout = parse_shard(content, "input");
  check(layout.offset >= 0 && layout.tokens >= 0 && (layout.width == 2 || layout.width == 4));
  check(layout.offset + layout.tokens * layout.width == static_cast<std::int64_t>(content.size()));
}

template <void (*Body)(std::string_view)>
void refusing(std::string_view input) try {
  Body(input);
} catch (const Error&) {
}

constexpr std::array<Target, 2> kTargets = {
    {{"tokenizer", refusing<tokenizer>}, {"token_shard", refusing<token_shard>}}};

}  // namespace

std::span<const Target> targets() {
  return kTargets;
}

}  // namespace quaver::fuzz
