#include "formats/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/crc32c.h"

namespace quaver {
namespace {

constexpr std::string_view kPrefix = "step-";
constexpr const char* kTemporary = ".tmp";
constexpr const char* kTrash = ".trash";
constexpr const char* kDamaged = ".damaged";
constexpr std::uint64_t kMaxManifest = 1 << 20;

std::string name_of_step(std::int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

/// The step of a checkpoint's folder; nothing for any other name.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [parsed, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || parsed != end || step < 0 || name_of_step(step) != name) return std::nullopt;
  return step;
}

ManifestEntry write_file(FileSystem& files, const std::string& folder, const CheckpointFile& content) {
  ManifestEntry entry{content.name, 0, 0};
  const auto file = files.create(folder + "/" + content.name);
  for (const auto chunk : content.chunks) {
    file->append(chunk);
    entry.bytes += chunk.size();
    entry.crc32c = crc32c(chunk, entry.crc32c);
  }
  file->sync();
  file->close();
  return entry;
}

std::string read_text(FileSystem& files, const std::string& path) {
  const auto file = files.open(path);
  if (file->size() > kMaxManifest) fail(ErrorKind::data, "{}: {} bytes are no manifest", path, file->size());
  std::string text(file->size(), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::uint32_t checksum(const ReadableFile& file) {
  constexpr std::uint64_t kBlock = 1 << 20;
  std::vector<std::byte> block(std::min(kBlock, file.size()));
  std::uint32_t crc = 0;
  for (std::uint64_t offset = 0; offset < file.size(); offset += kBlock) {
    const auto part = std::span(block).first(std::min(kBlock, file.size() - offset));
    file.read(offset, part);
    crc = crc32c(part, crc);
  }
  return crc;
}

void verify_file(FileSystem& files, const std::string& path, const ManifestEntry& expected) {
  const auto file = files.open(path);
  if (file->size() != expected.bytes)
    fail(ErrorKind::data, "{}: {} bytes, expected {}", path, file->size(), expected.bytes);
  const std::uint32_t found = checksum(*file);
  if (found != expected.crc32c)
    fail(ErrorKind::data, "{}: CRC32C {:08x}, expected {:08x}: the bytes are damaged", path, found,
         expected.crc32c);
}

}  // namespace

CheckpointManifest verify_checkpoint(FileSystem& files, const std::string& folder) {
  const std::string path = folder + "/" + kManifestName;
  const std::string text = read_text(files, path);
  CheckpointManifest manifest;
  try {
    manifest = parse_manifest(text);
  } catch (const Error& error) {
    fail(ErrorKind::data, "{}: {}", path, error.what());
  }
  for (const ManifestEntry& entry : manifest.files) verify_file(files, folder + "/" + entry.name, entry);
  return manifest;
}

std::string CheckpointStore::path_of(std::int64_t step) const {
  return folder_ + "/" + name_of_step(step);
}

std::vector<std::int64_t> CheckpointStore::steps() const {
  std::vector<std::int64_t> steps;
  if (!files_.exists(folder_)) return steps;
  for (const DirectoryEntry& entry : files_.list(folder_)) {
    const auto step = step_of(entry.name);
    if (step && entry.is_directory) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

CheckpointManifest CheckpointStore::verify(std::int64_t step) const {
  const std::string folder = path_of(step);
  const CheckpointManifest manifest = verify_checkpoint(files_, folder);
  if (manifest.step != step) fail(ErrorKind::data, "{}: is of step {}", folder, manifest.step);
  return manifest;
}

NewestCheckpoint CheckpointStore::find_newest() const {
  NewestCheckpoint newest;
  const std::vector<std::int64_t> ascending = steps();
  for (auto step = ascending.rbegin(); step != ascending.rend() && !newest.manifest; ++step) {
    try {
      newest.manifest = verify(*step);
    } catch (const Error& error) {
      newest.damaged.push_back({path_of(*step), error.what()});
    }
  }
  return newest;
}

NewestCheckpoint CheckpointStore::recover() {
  remove_leftovers();
  NewestCheckpoint newest = find_newest();
  if (!newest.manifest || newest.damaged.empty()) return newest;
  for (const std::int64_t step : steps()) {
    if (step > newest.manifest->step) rename_away(step, kDamaged);
  }
  files_.sync_directory(folder_);
  return newest;
}

CheckpointManifest CheckpointStore::save(std::int64_t step, std::span<const CheckpointFile> contents) {
  const std::string temporary = path_of(step) + kTemporary;
  make_folder();
  if (files_.exists(temporary)) remove_tree(files_, temporary);
  try {
    CheckpointManifest manifest = write_contents(temporary, step, contents);
    place(temporary, step);
    return manifest;
  } catch (...) {
    try {
      if (files_.exists(temporary)) remove_tree(files_, temporary);
    } catch (const Error&) {
      // The first failure is the one to report; the next save or start removes the folder.
    }
    throw;
  }
}

void CheckpointStore::keep_newest(std::int64_t count) {
  require(count >= 1, "checkpoints: expected to keep at least 1, found {}", count);
  remove_leftovers();
  std::vector<std::int64_t> old = steps();
  old.resize(std::max<std::int64_t>(static_cast<std::int64_t>(old.size()) - count, 0));
  if (old.empty()) return;
  for (const std::int64_t step : old) rename_away(step, kTrash);
  // Were files removed before the renaming is durable, a crash could leave a damaged checkpoint of that name.
  files_.sync_directory(folder_);
  for (const std::int64_t step : old) remove_tree(files_, path_of(step) + kTrash);
}

void CheckpointStore::make_folder() {
  if (files_.exists(folder_)) return;
  files_.make_directory(folder_);
  files_.sync_directory(parent_of(folder_));
}

CheckpointManifest CheckpointStore::write_contents(const std::string& folder, std::int64_t step,
                                                   std::span<const CheckpointFile> contents) {
  CheckpointManifest manifest{step, {}};
  files_.make_directory(folder);
  for (const CheckpointFile& content : contents)
    manifest.files.push_back(write_file(files_, folder, content));
  const std::string text = format_manifest(manifest);
  write_file(files_, folder, {kManifestName, {std::as_bytes(std::span(text))}});
  files_.sync_directory(folder);
  return manifest;
}

void CheckpointStore::place(const std::string& temporary, std::int64_t step) {
  if (files_.exists(path_of(step))) {
    rename_away(step, kTrash);
    files_.sync_directory(folder_);
  }
  files_.rename(temporary, path_of(step));
  files_.sync_directory(folder_);
}

void CheckpointStore::remove_leftovers() {
  if (!files_.exists(folder_)) return;
  for (const DirectoryEntry& entry : files_.list(folder_)) {
    const bool leftover = entry.name.ends_with(kTemporary) || entry.name.ends_with(kTrash);
    if (leftover && entry.is_directory && entry.name.starts_with(kPrefix))
      remove_tree(files_, folder_ + "/" + entry.name);
  }
}

void CheckpointStore::rename_away(std::int64_t step, const char* suffix) {
  const std::string path = path_of(step);
  if (files_.exists(path + suffix)) remove_tree(files_, path + suffix);
  files_.rename(path, path + suffix);
}

}  // namespace quaver
