/// Any text as a run file: refused with an Error, or accepted, and then equal to what its own resolved file
/// says.
#include <cstdlib>
#include <string_view>

#include "fuzz/target.h"
#include "quaver/error.h"
#include "train/run_config.h"

namespace {

/// The configuration; nothing when the text is refused as it should be.
bool parse(std::string_view text, quaver::RunConfig& config) {
  try {
    config = quaver::parse_run_config(text, "fuzz");
    return true;
  } catch (const quaver::Error& error) {
    if (error.kind() != quaver::ErrorKind::usage) std::abort();
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  quaver::RunConfig config, again;
  if (!parse({reinterpret_cast<const char*>(data), size}, config)) return 0;
  if (!parse(quaver::to_toml(config), again) || !(config == again)) std::abort();
  return 0;
}
