/// The scalar FP8 codec behind a C interface, so that Python can compare it with ml_dtypes.
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "quaver/fp8_format.h"

namespace {
quaver::DType format_of(int e5m2) {
  return e5m2 ? quaver::DType::e5m2 : quaver::DType::e4m3;
}
}  // namespace

extern "C" void quaver_fp8_encode(int e5m2, const float* values, std::int64_t count, std::uint8_t* bytes) {
  const quaver::DType format = format_of(e5m2);
  quaver::Threads().for_blocks(count, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    std::transform(values + begin, values + end, bytes + begin,
                   [&](float x) { return quaver::fp8_encode(format, x); });
  });
}

extern "C" void quaver_fp8_decode(int e5m2, const std::uint8_t* bytes, std::int64_t count, float* values) {
  std::transform(bytes, bytes + count, values,
                 [&](std::uint8_t b) { return quaver::fp8_decode(format_of(e5m2), b); });
}
