#include "formats/checkpoint_manifest.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/crc32c.h"

namespace quaver {
namespace {

using nlohmann::ordered_json;

constexpr int kFormatVersion = 1;

std::string hexadecimal(std::uint32_t crc) {
  return fmt::format("{:08x}", crc);
}

std::uint32_t from_hexadecimal(const std::string& text) {
  std::uint32_t crc = 0;
  std::from_chars(text.data(), text.data() + text.size(), crc, 16);
  return crc;  // whatever else the text holds shows when the manifest is formatted again
}

/// A name that cannot lead out of the checkpoint's folder.
void require_plain_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos ||
      name.find('\0') != std::string::npos)
    fail(ErrorKind::data, "\"{}\" is not the name of a file in the folder", name);
}

CheckpointManifest from_json(const ordered_json& json) {
  const auto version = json.at("format_version").get<std::int64_t>();
  if (version != kFormatVersion)
    fail(ErrorKind::data, "format version {}, expected {}", version, kFormatVersion);
  CheckpointManifest manifest;
  manifest.step = json.at("step").get<std::int64_t>();
  for (const auto& file : json.at("files")) {
    manifest.files.push_back({file.at("name").get<std::string>(), file.at("bytes").get<std::uint64_t>(),
                              from_hexadecimal(file.at("crc32c").get<std::string>())});
    require_plain_name(manifest.files.back().name);
  }
  return manifest;
}

}  // namespace

std::string format_manifest(const CheckpointManifest& manifest) {
  ordered_json files = ordered_json::array();
  for (const ManifestEntry& file : manifest.files)
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"crc32c", hexadecimal(file.crc32c)}});
  ordered_json json = {
      {"format_version", kFormatVersion}, {"step", manifest.step}, {"files", std::move(files)}};
  const std::string content = json.dump();
  json["crc32c"] = hexadecimal(crc32c(std::as_bytes(std::span(content))));
  return json.dump(1) + "\n";
}

CheckpointManifest parse_manifest(std::string_view text) {
  CheckpointManifest manifest;
  std::string again;
  try {
    manifest = from_json(ordered_json::parse(text));
    again = format_manifest(manifest);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::data, "not a manifest: {}", error.what());
  }
  if (again != text) fail(ErrorKind::data, "the manifest's content does not fit its CRC32C or its form");
  return manifest;
}

}  // namespace quaver
