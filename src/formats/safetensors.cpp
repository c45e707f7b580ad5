#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/files.h"
#include "formats/safetensors_header.h"

namespace quaver {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors is little-endian, and so are the machines we run on");

constexpr std::uint64_t kLengthBytes = 8;

/// Reads and checks the header; `data_begin` becomes the offset of the data in the file.
SafetensorsHeader read_header(const std::string& path, const InputFile& file, std::uint64_t& data_begin) try {
  if (file.size() < kLengthBytes) {
    fail(ErrorKind::data, "expected a header length of 8 bytes, but the file has {} bytes", file.size());
  }
  std::uint64_t length = 0;
  file.read(0, std::as_writable_bytes(std::span(&length, 1)));
  if (length > kMaxSafetensorsHeader || length > file.size() - kLengthBytes) {
    fail(ErrorKind::data, "a header of {} bytes does not fit: the file has {} bytes, and a header at most {}",
         length, file.size(), kMaxSafetensorsHeader);
  }
  std::string text(length, '\0');
  file.read(kLengthBytes, std::as_writable_bytes(std::span(text)));
  data_begin = kLengthBytes + length;
  return parse_safetensors_header(text, file.size() - data_begin);
} catch (const Error& error) {
  fail(error.kind(), "{}: not a valid safetensors file: {}", path, error.what());
}

Safetensors read(const std::string& path, bool with_data) {
  const InputFile file(path);
  std::uint64_t data_begin = 0;
  SafetensorsHeader header = read_header(path, file, data_begin);
  Safetensors result{{}, std::move(header.metadata)};
  for (SafetensorsEntry& entry : header.entries) {
    NamedArray array{std::move(entry.name), entry.dtype, std::move(entry.shape), {}};
    if (with_data) {
      array.bytes.resize(entry.end - entry.begin);
      file.read(data_begin + entry.begin, array.bytes);
    }
    result.arrays.push_back(std::move(array));
  }
  return result;
}

}  // namespace

const NamedArray* Safetensors::find(const std::string& name) const {
  const auto found =
      std::find_if(arrays.begin(), arrays.end(), [&](const NamedArray& array) { return array.name == name; });
  return found == arrays.end() ? nullptr : &*found;
}

Safetensors read_safetensors(const std::string& path) {
  return read(path, true);
}

Safetensors read_safetensors_header(const std::string& path) {
  return read(path, false);
}

void write_safetensors(const std::string& path, std::span<const NamedArray> arrays,
                       const std::map<std::string, std::string>& metadata) {
  SafetensorsHeader header{{}, metadata};
  std::uint64_t offset = 0;
  for (const NamedArray& array : arrays) {
    require(array.bytes.size() == safetensors_bytes(array.dtype, array.shape),
            "safetensors: array \"{}\" of {}{} has {} bytes", array.name, name_of(array.dtype),
            to_string(array.shape), array.bytes.size());
    header.entries.push_back({array.name, array.dtype, array.shape, offset, offset + array.bytes.size()});
    offset += array.bytes.size();
  }
  const std::string text = format_safetensors_header(header);
  const std::uint64_t length = text.size();
  require(length <= kMaxSafetensorsHeader,
          "safetensors: the header would have {} bytes; at most {} are allowed", length,
          kMaxSafetensorsHeader);
  std::vector<std::span<const std::byte>> chunks{std::as_bytes(std::span(&length, 1)),
                                                 std::as_bytes(std::span(text))};
  for (const NamedArray& array : arrays) chunks.emplace_back(array.bytes);
  write_file_atomically(path, chunks);
}

}  // namespace quaver
