/// Files as memory, read by the system page by page.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace quaver {

/// A regular file mapped for reading. Copies share the mapping. The file must not be shortened meanwhile: the
/// system ends a program that reads behind its end. Errors are of kind data.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  /// Maps what an open descriptor refers to, and closes it; `name` stands for the file in messages.
  MappedFile(int descriptor, const std::string& name);

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::shared_ptr<const void> memory_;
  std::span<const std::byte> bytes_;
};

}  // namespace quaver
