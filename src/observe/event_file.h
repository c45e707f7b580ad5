/// Event files as TensorBoard reads them: TFRecord frames around Event messages (protocol buffers, tensorflow/core/util/event.proto).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/files.h"

namespace quaver {

struct Scalar {
  std::string name;
  float value = 0;
};

/// One record: its length, the masked CRC32C of that, the bytes, their masked CRC32C.
std::string tfrecord(std::string_view bytes);

/// The event files of one process. Each record is handed to the system at once. Errors are of kind failure.
class EventFile {
 public:
  /// Makes a new file in `folder`, whose first event says that steps from `first_step` on in earlier files are void: a run that
  /// goes on after a crash writes them again.
  EventFile(const std::string& folder, std::int64_t first_step);
  void append(std::int64_t step, std::span<const Scalar> scalars);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  FileHandle file_;
};

}  // namespace quaver
