/// Any bytes as a token shard: refused with an Error, or accepted with tokens that fill the file's rest.
#include <cstdlib>
#include <span>

#include "fuzz/target.h"
#include "quaver/error.h"
#include "text/token_shard.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto layout = quaver::parse_shard(std::as_bytes(std::span(data, size)), "input");
    if (layout.offset < 0 || layout.tokens < 0 || (layout.width != 2 && layout.width != 4)) std::abort();
    if (layout.offset + layout.tokens * layout.width != static_cast<std::int64_t>(size)) std::abort();
  } catch (const quaver::Error&) {
  }
  return 0;
}
