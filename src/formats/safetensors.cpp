#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/files.h"
#include "formats/safetensors_header.h"

namespace quaver {
namespace {

/// Adds the file's name to what `parse` finds wrong.
template <typename Parse>
auto naming(const std::string& path, Parse parse) try {
  return parse();
} catch (const Error& error) {
  fail(error.kind(), "{}: not a valid safetensors file: {}", path, error.what());
}

/// Reads and checks the header; `data_begin` becomes the offset of the data in the file.
SafetensorsHeader read_header(const InputFile& file, std::uint64_t& data_begin) {
  std::array<std::byte, kSafetensorsLengthBytes> first{};
  const std::span<std::byte> begin =
      std::span(first).first(std::min<std::uint64_t>(file.size(), first.size()));
  file.read(0, begin);
  std::string text(safetensors_header_length(begin, file.size()), '\0');
  file.read(first.size(), std::as_writable_bytes(std::span(text)));
  data_begin = first.size() + text.size();
  return parse_safetensors_header(text, file.size() - data_begin);
}

Safetensors read(const std::string& path, bool with_data) {
  const InputFile file(path);
  std::uint64_t data_begin = 0;
  SafetensorsHeader header = naming(path, [&] { return read_header(file, data_begin); });
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

MappedSafetensors::MappedSafetensors(const std::string& path) : file_(path) {
  std::uint64_t data_begin = 0;
  SafetensorsHeader header = naming(path, [&] { return parse_safetensors(file_.bytes(), data_begin); });
  metadata_ = std::move(header.metadata);
  for (SafetensorsEntry& entry : header.entries) {
    arrays_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape),
                       file_.bytes().subspan(data_begin + entry.begin, entry.end - entry.begin)});
  }
}

Safetensors read_safetensors(const std::string& path) {
  return read(path, true);
}

Safetensors read_safetensors_header(const std::string& path) {
  return read(path, false);
}

std::string safetensors_preamble(std::span<const NamedArray> arrays,
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
  std::string preamble(sizeof length, '\0');
  std::memcpy(preamble.data(), &length, sizeof length);
  return preamble + text;
}

void write_safetensors(const std::string& path, std::span<const NamedArray> arrays,
                       const std::map<std::string, std::string>& metadata) {
  const std::string preamble = safetensors_preamble(arrays, metadata);
  std::vector<std::span<const std::byte>> chunks{std::as_bytes(std::span(preamble))};
  for (const NamedArray& array : arrays) chunks.emplace_back(array.bytes);
  write_file_atomically(path, chunks);
}

}  // namespace quaver
