#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "base/check.h"
#include "base/files.h"

namespace quaver {
namespace {

std::string reason() {
  return std::generic_category().message(errno);
}

}  // namespace

// Not blocking, for a pipe given by mistake: opening it must not wait for a writer.
MappedFile::MappedFile(const std::string& path)
    : MappedFile(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK), path) {}

MappedFile::MappedFile(int descriptor, const std::string& name) {
  const FileHandle file(descriptor);
  if (file.get() < 0) fail(ErrorKind::data, "{}: cannot open: {}", name, reason());
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(ErrorKind::data, "{}: cannot examine: {}", name, reason());
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorKind::data, "{}: expected a file, found {}", name,
         S_ISDIR(status.st_mode) ? "a folder" : "a device or pipe");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // nothing to map, which the system would refuse
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) fail(ErrorKind::data, "{}: cannot map: {}", name, reason());
  memory_ = std::shared_ptr<const void>(memory, [size, memory](const void*) { ::munmap(memory, size); });
  bytes_ = {static_cast<const std::byte*>(memory), size};
}

}  // namespace quaver
