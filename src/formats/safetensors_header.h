/// The JSON header of a safetensors file, apart from any file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/safetensors.h"

namespace quaver {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes, counted from the end of the header
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in order of their offsets
  std::map<std::string, std::string> metadata;
};

/// Parses a header and checks it against the number of bytes that follow it. Throws Error(data), without a
/// file name.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes);

/// The length of the header, from the file's first 8 bytes. Throws Error(data), without a file name, when a
/// header of that length does not fit into the file or the limit.
std::uint64_t safetensors_header_length(std::span<const std::byte> first_bytes, std::uint64_t file_bytes);
constexpr std::uint64_t kSafetensorsLengthBytes = 8;

/// The same for a whole file in memory; `data_begin` becomes the offset of the data.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::uint64_t& data_begin);

/// The header, padded with spaces so that the data begins at a multiple of 8. Throws Error(usage) for names
/// that do not form a header.
std::string format_safetensors_header(const SafetensorsHeader& header);

/// Bytes of an array. Throws Error(data) when a dimension is negative or the number leaves 64 bits.
std::uint64_t safetensors_bytes(DType dtype, const Shape& shape);

}  // namespace quaver
