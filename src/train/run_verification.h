/// Checks everything that a run folder holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace quaver {

/// A part of a run, and whether it can be relied on.
struct VerifiedPart {
  std::string path;
  std::string found;  ///< what it is, e.g. "step 200, 4.1 MB"; of a damaged one what is wrong
  bool damaged = false;
};

struct RunVerification {
  std::vector<VerifiedPart> parts;
  std::int64_t damaged() const;
};

/// Of a run folder: its configuration, every checkpoint, its own model and FP8 state, its metrics, its tokenizer. Of
/// a checkpoint's folder, that checkpoint. Of a checkpoint: sizes and CRC32C of every file, strict safetensors, names
/// and shapes as the configuration asks for, one step throughout, every number finite. What a crash may leave (an
/// unfinished save, a last line cut off) is mentioned, and no damage. Changes nothing. Throws Error(data) when
/// `folder` is neither.
RunVerification verify_run(FileSystem& files, const std::string& folder);

}  // namespace quaver
