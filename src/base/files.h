/// Files: whole reads, atomic writes, appends. Every system call is checked; messages name the path and the
/// reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace quaver {

/// An open file descriptor, closed with the object.
class FileHandle {
 public:
  explicit FileHandle(int descriptor) : descriptor_(descriptor) {}
  ~FileHandle();
  FileHandle(FileHandle&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = -1; }
  FileHandle& operator=(FileHandle&&) = delete;
  int get() const { return descriptor_; }
  /// Closes now; false when the system reports an error, which is then in errno.
  bool close();

 private:
  int descriptor_;
};

/// Writes all of `bytes`; false, with the reason in errno, when the system refuses.
bool write_all(int descriptor, std::span<const std::byte> bytes);

/// A regular file open for reading. Errors are of kind data.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  std::uint64_t size() const { return size_; }
  int descriptor() const { return file_.get(); }
  /// Fills `destination` from `offset`; a file that ends before is an error.
  void read(std::uint64_t offset, std::span<std::byte> destination) const;

 private:
  std::string path_;
  FileHandle file_;
  std::uint64_t size_ = 0;
};

/// The first `limit` bytes of a regular file (all, when it is shorter). Errors are of kind data.
std::string read_file(const std::string& path,
                      std::uint64_t limit = std::numeric_limits<std::uint64_t>::max());

/// Replaces `path` by the chunks, one after another: writes path + ".tmp", synchronises it and renames it.
/// When anything fails (a full disk), throws Error(failure); the old file is then untouched and the temporary
/// removed.
void write_file_atomically(const std::string& path, std::span<const std::span<const std::byte>> chunks);
void write_file_atomically(const std::string& path, std::string_view text);

/// A file that grows line by line. Each line is handed to the system at once, so that readers and crashes see
/// whole lines. Errors are of kind failure.
class AppendFile {
 public:
  explicit AppendFile(const std::string& path);
  /// Appends `line` and a line end.
  void append(std::string_view line);
  /// Makes the lines so far durable. Another thread may call it.
  void sync() const;

 private:
  std::string path_;
  FileHandle file_;
};

/// Holds a folder for one process: another lock of the same folder fails while this one lives. The lock ends
/// with the process, however it ends.
class FolderLock {
 public:
  /// Throws Error(usage) when another process holds `folder`. A file system without locks locks nothing.
  explicit FolderLock(const std::string& folder);

 private:
  FileHandle folder_;
};

/// Makes a folder and those above it; an existing one is fine. Throws Error(failure).
void make_directories(const std::string& path);

}  // namespace quaver
