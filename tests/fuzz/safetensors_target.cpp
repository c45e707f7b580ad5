/// Any bytes as a safetensors file: refused with an Error, or accepted with entries that lie inside the file,
/// and whose header, written again, says the same.
#include <cstdlib>

#include "formats/safetensors_header.h"
#include "fuzz/target.h"
#include "quaver/error.h"

namespace {

using quaver::SafetensorsEntry;

bool equal(const SafetensorsEntry& a, const SafetensorsEntry& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end;
}

void check_accepted(const quaver::SafetensorsHeader& header, std::uint64_t data_bytes) {
  const std::string text = quaver::format_safetensors_header(header);
  const quaver::SafetensorsHeader again = quaver::parse_safetensors_header(text, data_bytes);
  if (again.metadata != header.metadata || again.entries.size() != header.entries.size()) std::abort();
  std::uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != covered || entry.end < entry.begin) std::abort();
    covered = entry.end;
    // Empty arrays at one offset may change places.
    bool found = false;
    for (const SafetensorsEntry& other : again.entries) found = found || equal(entry, other);
    if (!found) std::abort();
  }
  if (covered != data_bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::uint64_t data_begin = 0;
  try {
    const auto header = quaver::parse_safetensors(std::as_bytes(std::span(data, size)), data_begin);
    check_accepted(header, size - data_begin);
  } catch (const quaver::Error& error) {
    if (error.kind() != quaver::ErrorKind::data) std::abort();
  }
  return 0;
}
