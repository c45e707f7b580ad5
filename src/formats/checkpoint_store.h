/// A folder of checkpoints that survives a crash at any moment.
///
/// A checkpoint of step n is the folder "step-<n>" with files and "manifest.json". Saving writes
/// "step-<n>.tmp": files, each synchronised; the manifest with sizes and CRC32C last; the folder's names;
/// then renames it and synchronises the parent. Deleting renames to "step-<n>.trash" first and synchronises
/// that. So a folder with a final name is whole unless its bytes were damaged afterwards, and the CRC32C show
/// that.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/checkpoint_manifest.h"

namespace quaver {

inline constexpr const char* kManifestName = "manifest.json";

/// A file to save, as chunks one after another.
struct CheckpointFile {
  std::string name;
  std::vector<std::span<const std::byte>> chunks;
};

/// The manifest of a checkpoint's folder, having read and checked every byte of it. Throws Error(data).
CheckpointManifest verify_checkpoint(FileSystem& files, const std::string& folder);

/// A checkpoint whose manifest does not verify, and why.
struct DamagedCheckpoint {
  std::string path, reason;
};

struct NewestCheckpoint {
  std::optional<CheckpointManifest> manifest;  ///< of the newest whole checkpoint; nothing: there is none
  std::vector<DamagedCheckpoint> damaged;      ///< newer ones, newest first
};

/// Not thread-safe, and one process at a time may write.
class CheckpointStore {
 public:
  CheckpointStore(FileSystem& files, std::string folder) : files_(files), folder_(std::move(folder)) {}

  /// The folder of a checkpoint, whether it exists or not.
  std::string path_of(std::int64_t step) const;
  /// Steps that have a folder, ascending; nothing is verified.
  std::vector<std::int64_t> steps() const;

  /// As `verify_checkpoint`, and the folder is named after its step.
  CheckpointManifest verify(std::int64_t step) const;
  /// Verifies from the newest down to the first whole one. Changes nothing.
  NewestCheckpoint find_newest() const;

  /// As `find_newest`, for whoever goes on writing: removes what interrupted saves and deletions left, and
  /// renames damaged checkpoints to "step-<n>.damaged", so that they no longer count; when none is whole, renames
  /// nothing.
  NewestCheckpoint recover();

  /// Saves; when it returns, the checkpoint is durable. Replaces one of the same step. When anything fails,
  /// throws Error(failure); the other checkpoints are untouched.
  CheckpointManifest save(std::int64_t step, std::span<const CheckpointFile> contents);
  /// Deletes all but the newest `count` >= 1.
  void keep_newest(std::int64_t count);

 private:
  void make_folder();
  CheckpointManifest write_contents(const std::string& folder, std::int64_t step,
                                    std::span<const CheckpointFile> contents);
  void place(const std::string& temporary, std::int64_t step);
  void remove_leftovers();
  void rename_away(std::int64_t step, const char* suffix);

  FileSystem& files_;
  std::string folder_;
};

}  // namespace quaver
