/// The manifest of a checkpoint folder: which files it holds, their sizes and CRC32C.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quaver {

struct ManifestEntry {
  std::string name;  ///< a file in the same folder
  std::uint64_t bytes = 0;
  std::uint32_t crc32c = 0;
  friend bool operator==(const ManifestEntry&, const ManifestEntry&) = default;
};

struct CheckpointManifest {
  std::int64_t step = 0;
  std::vector<ManifestEntry> files;
  friend bool operator==(const CheckpointManifest&, const CheckpointManifest&) = default;
};

/// JSON that ends with the CRC32C of what comes before it.
std::string format_manifest(const CheckpointManifest& manifest);

/// Throws Error(data), without a file name, unless `text` is what `format_manifest` writes, byte for byte: so
/// that no damage whatsoever reads as another manifest.
CheckpointManifest parse_manifest(std::string_view text);

}  // namespace quaver
