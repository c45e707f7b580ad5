// libFuzzer's entry for the target that QUAVER_FUZZ_TARGET names.
#include <cstdint>
#include <cstdlib>

#include "fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  for (const quaver::fuzz::Target& target : quaver::fuzz::targets()) {
    if (target.name != QUAVER_FUZZ_TARGET) continue;
    target.run({reinterpret_cast<const char*>(data), size});
    return 0;
  }
  std::abort();
}
