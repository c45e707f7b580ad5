/// The operating system's files behind an interface, as narrow as a durable protocol needs it: so that tests
/// can lose what was not synchronised, fail any operation, or stop the process inside it.
///
/// What a crash may do, and what the protocols above rely on: bytes of a file are durable once `sync`
/// returned; names of a folder (made, renamed, removed) once `sync_directory` of that folder returned; before,
/// any part of them may be lost, in any order. A rename happens wholly or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace quaver {

/// A file being written, from its beginning to its end. Errors are of kind failure.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual void append(std::span<const std::byte> bytes) = 0;
  virtual void sync() = 0;
  /// Without it the destructor closes, and an error goes unnoticed.
  virtual void close() = 0;
};

/// A file open for reading. Errors are of kind data.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual std::uint64_t size() const = 0;
  /// Fills `destination` from `offset`; a file that ends before is an error.
  virtual void read(std::uint64_t offset, std::span<std::byte> destination) const = 0;
};

struct DirectoryEntry {
  std::string name;
  bool is_directory = false;
};

/// Errors are of kind failure unless said, and name the path and the reason.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  /// A new file, or an existing one emptied.
  virtual std::unique_ptr<WritableFile> create(const std::string& path) = 0;
  virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;
  /// Both lie in the same folder. `to` must not be a folder that holds something.
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove_file(const std::string& path) = 0;
  virtual void make_directory(const std::string& path) = 0;
  virtual void remove_directory(const std::string& path) = 0;  ///< must be empty
  virtual void sync_directory(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;
  virtual std::vector<DirectoryEntry> list(const std::string& path) = 0;  ///< in order of names
};

/// The real thing.
class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<ReadableFile> open(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_file(const std::string& path) override;
  void make_directory(const std::string& path) override;
  void remove_directory(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  bool exists(const std::string& path) override;
  std::vector<DirectoryEntry> list(const std::string& path) override;
};

/// Removes a folder and all it holds.
void remove_tree(FileSystem& files, const std::string& path);

/// The folder that `path` lies in; "." for a bare name.
std::string parent_of(const std::string& path);

}  // namespace quaver
