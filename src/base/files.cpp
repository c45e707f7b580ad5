#include "base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

/// The text of an errno value; unlike strerror, safe with threads.
std::string reason(int error) {
  return std::generic_category().message(error);
}

/// Makes a rename durable. Best effort: some file systems cannot synchronise a folder, and the data itself is
/// safe by now.
void synchronise_folder_of(const std::string& path) {
  const auto folder = std::filesystem::path(path).parent_path();
  const FileHandle handle(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (handle.get() >= 0) ::fsync(handle.get());
}

/// False, with the reason in errno, at the first thing that fails.
bool write_new_file(const std::string& path, std::span<const std::span<const std::byte>> chunks) {
  FileHandle file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.get() < 0) return false;
  for (const auto chunk : chunks) {
    if (!write_all(file.get(), chunk)) return false;
  }
  return ::fsync(file.get()) == 0 && file.close();
}

}  // namespace

FileHandle::~FileHandle() {
  // Whoever wants to know of an error calls close(); errno of an earlier failure is kept for the message
  // about it.
  const int error = errno;
  close();
  errno = error;
}

bool FileHandle::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  return descriptor < 0 || ::close(descriptor) == 0;
}

bool write_all(int descriptor, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return true;
}

// Not blocking matters for a pipe given by mistake: opening it must fail below, not wait for a writer.
InputFile::InputFile(const std::string& path)
    : path_(path), file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (file_.get() < 0) fail(ErrorKind::data, "{}: cannot open: {}", path, reason(errno));
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0)
    fail(ErrorKind::data, "{}: cannot examine: {}", path, reason(errno));
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorKind::data, "{}: expected a file, found {}", path,
         S_ISDIR(status.st_mode) ? "a folder" : "a device or pipe");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void InputFile::read(std::uint64_t offset, std::span<std::byte> destination) const {
  while (!destination.empty()) {
    const ssize_t count =
        ::pread(file_.get(), destination.data(), destination.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ErrorKind::data, "{}: cannot read: {}", path_, reason(errno));
    if (count == 0)
      fail(ErrorKind::data, "{}: ends at byte {}, {} bytes early", path_, offset, destination.size());
    offset += static_cast<std::uint64_t>(count);
    destination = destination.subspan(static_cast<std::size_t>(count));
  }
}

std::string read_file(const std::string& path, std::uint64_t limit) {
  const InputFile file(path);
  std::string content(std::min(file.size(), limit), '\0');
  file.read(0, std::as_writable_bytes(std::span(content)));
  return content;
}

void write_file_atomically(const std::string& path, std::span<const std::span<const std::byte>> chunks) {
  const std::string temporary = path + ".tmp";
  if (write_new_file(temporary, chunks) && std::rename(temporary.c_str(), path.c_str()) == 0) {
    synchronise_folder_of(path);
    return;
  }
  const int error = errno;
  ::unlink(temporary.c_str());
  fail(ErrorKind::failure, "{}: cannot write: {}; an earlier file of this name is untouched", path,
       reason(error));
}

void write_file_atomically(const std::string& path, std::string_view text) {
  const std::span<const std::byte> chunk = std::as_bytes(std::span(text));
  write_file_atomically(path, std::span(&chunk, 1));
}

AppendFile::AppendFile(const std::string& path)
    : path_(path), file_(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) {
  if (file_.get() < 0) fail(ErrorKind::failure, "{}: cannot open for appending: {}", path, reason(errno));
}

void AppendFile::append(std::string_view line) {
  std::string text(line);
  text += '\n';
  if (!write_all(file_.get(), std::as_bytes(std::span(text)))) {
    fail(ErrorKind::failure, "{}: cannot append: {}", path_, reason(errno));
  }
}

void AppendFile::sync() const {
  // EINVAL: a device or pipe, which has nothing to synchronise.
  if (::fsync(file_.get()) != 0 && errno != EINVAL)
    fail(ErrorKind::failure, "{}: cannot synchronise: {}", path_, reason(errno));
}

FolderLock::FolderLock(const std::string& folder)
    : folder_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  if (folder_.get() < 0) fail(ErrorKind::failure, "{}: cannot open the folder: {}", folder, reason(errno));
  const bool held = ::flock(folder_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  require(!held, "{}: another process is writing this folder. Hint: wait for it, or choose another folder",
          folder);
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error && !std::filesystem::is_directory(path, error) && !error)
    error = std::make_error_code(std::errc::not_a_directory);
  if (error) fail(ErrorKind::failure, "{}: cannot make the folder: {}", path, error.message());
}

}  // namespace quaver
