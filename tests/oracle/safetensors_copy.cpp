/// Reads safetensors files through each of Quaver's readers and writes them again, for
/// tests/oracle/safetensors_test.py.
///
/// usage: oracle_safetensors_copy read|map IN OUT
///        oracle_safetensors_copy check FILE...        a line "ok" or "refused" for each
#include <fmt/format.h>

#include <exception>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "quaver/error.h"

namespace quaver {
namespace {

void copy(const std::string& reader, const std::string& in, const std::string& out) {
  if (reader == "read") {
    const Safetensors file = read_safetensors(in);
    return write_safetensors(out, file.arrays, file.metadata);
  }
  const MappedSafetensors file(in);
  std::vector<NamedArray> arrays;
  for (const MappedArray& array : file.arrays()) {
    arrays.push_back({array.name, array.dtype, array.shape, {array.bytes.begin(), array.bytes.end()}});
  }
  write_safetensors(out, arrays, file.metadata());
}

bool is_accepted(const std::string& path) {
  try {
    const MappedSafetensors file(path);
    return true;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::data) throw;
    return false;
  }
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) throw std::runtime_error("expected arguments");
  if (arguments[0] == "check") {
    for (std::size_t i = 1; i < arguments.size(); ++i)
      fmt::print("{}\n", quaver::is_accepted(arguments[i]) ? "ok" : "refused");
  } else {
    quaver::copy(arguments.at(0), arguments.at(1), arguments.at(2));
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "oracle_safetensors_copy: {}\n", error.what());
  return 1;
}
