#include "base/file_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/check.h"
#include "base/files.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

/// Throws with the reason in errno unless `succeeded`.
void check(bool succeeded, const std::string& path, const char* what) {
  if (!succeeded)
    fail(ErrorKind::failure, "{}: cannot {}: {}", path, what, std::generic_category().message(errno));
}

class PosixWritableFile final : public WritableFile {
 public:
  explicit PosixWritableFile(const std::string& path)
      : path_(path), file_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) {
    check(file_.get() >= 0, path_, "create");
  }
  void append(std::span<const std::byte> bytes) override {
    if (write_all(file_.get(), bytes)) {
      size_ += bytes.size();
      return;
    }
    const int error = errno;
    fail(ErrorKind::failure, "{}: cannot write {} bytes from byte {} on: {}", path_, bytes.size(), size_,
         std::generic_category().message(error));
  }
  void sync() override { check(::fsync(file_.get()) == 0, path_, "synchronise"); }
  void close() override { check(file_.close(), path_, "close"); }

 private:
  std::string path_;
  FileHandle file_;
  std::uint64_t size_ = 0;
};

class PosixReadableFile final : public ReadableFile {
 public:
  explicit PosixReadableFile(const std::string& path) : file_(path) {}
  std::uint64_t size() const override { return file_.size(); }
  void read(std::uint64_t offset, std::span<std::byte> destination) const override {
    file_.read(offset, destination);
  }

 private:
  InputFile file_;
};

}  // namespace

std::unique_ptr<WritableFile> PosixFileSystem::create(const std::string& path) {
  return std::make_unique<PosixWritableFile>(path);
}

std::unique_ptr<ReadableFile> PosixFileSystem::open(const std::string& path) {
  return std::make_unique<PosixReadableFile>(path);
}

void PosixFileSystem::rename(const std::string& from, const std::string& to) {
  check(std::rename(from.c_str(), to.c_str()) == 0, from, "rename");
}

void PosixFileSystem::remove_file(const std::string& path) {
  check(::unlink(path.c_str()) == 0, path, "remove");
}

void PosixFileSystem::make_directory(const std::string& path) {
  check(::mkdir(path.c_str(), 0777) == 0, path, "make the folder");
}

void PosixFileSystem::remove_directory(const std::string& path) {
  check(::rmdir(path.c_str()) == 0, path, "remove the folder");
}

void PosixFileSystem::sync_directory(const std::string& path) {
  const FileHandle folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  check(folder.get() >= 0, path, "open the folder");
  // EINVAL: a file system that has no such operation, and therefore promises nothing.
  check(::fsync(folder.get()) == 0 || errno == EINVAL, path, "synchronise the folder");
}

bool PosixFileSystem::exists(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

std::vector<DirectoryEntry> PosixFileSystem::list(const std::string& path) try {
  std::vector<DirectoryEntry> entries;
  for (const auto& entry : fs::directory_iterator(path))
    entries.push_back({entry.path().filename().string(), fs::is_directory(entry.symlink_status())});
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return entries;
} catch (const fs::filesystem_error& error) {
  fail(ErrorKind::failure, "{}: cannot list the folder: {}", path, error.code().message());
}

void remove_tree(FileSystem& files, const std::string& path) {
  for (const DirectoryEntry& entry : files.list(path)) {
    const std::string inner = path + "/" + entry.name;
    entry.is_directory ? remove_tree(files, inner) : files.remove_file(inner);
  }
  files.remove_directory(path);
}

std::string parent_of(const std::string& path) {
  fs::path name(path);
  if (!name.has_filename()) name = name.parent_path();  // "a/b/"
  const fs::path parent = name.parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace quaver
