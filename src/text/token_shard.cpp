#include "text/token_shard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

constexpr std::int64_t kHeaderBytes = 256 * 4;
constexpr std::size_t kHeldBytes = std::size_t{1} << 20;

struct Kind {
  std::int32_t magic, version;
  int width;
};
constexpr std::array<Kind, 2> kKinds = {{{20240520, 1, 2}, {20240801, 7, 4}}};

std::int32_t integer_at(std::span<const std::byte> content, std::size_t index) {
  std::int32_t value = 0;
  std::memcpy(&value, content.data() + 4 * index, sizeof(value));
  return value;
}

const Kind* kind_of(std::span<const std::byte> content) {
  if (content.size() < 4) return nullptr;
  for (const Kind& kind : kKinds) {
    if (integer_at(content, 0) == kind.magic) return &kind;
  }
  return nullptr;
}

const Kind& kind_of_width(int width) {
  return width == kKinds[0].width ? kKinds[0] : kKinds[1];
}

std::string reason() {
  return std::generic_category().message(errno);
}

}  // namespace

bool has_shard_header(const std::string& path) try {
  const InputFile file(path);
  std::array<std::byte, 4> magic{};
  if (file.size() < magic.size()) return false;
  file.read(0, magic);
  return kind_of(magic) != nullptr;
} catch (const Error&) {
  return false;
}

ShardLayout parse_shard(std::span<const std::byte> content, const std::string& name) {
  const auto size = static_cast<std::int64_t>(content.size());
  const Kind* kind = kind_of(content);
  if (!kind) {
    if (size == 0 || size % 2 != 0)
      fail(ErrorKind::data, "{}: expected tokens of 2 bytes (it has no header of a shard), found {} bytes",
           name, size);
    return {0, size / 2, 2};
  }
  if (size < kHeaderBytes)
    fail(ErrorKind::data, "{}: a shard of {} bytes; its header alone has {}", name, size, kHeaderBytes);
  const std::int32_t version = integer_at(content, 1), tokens = integer_at(content, 2);
  if (version != kind->version)
    fail(ErrorKind::data, "{}: shard {} of version {}, expected {}", name, kind->magic, version,
         kind->version);
  const std::int64_t expected = kHeaderBytes + static_cast<std::int64_t>(tokens) * kind->width;
  if (tokens < 0 || size != expected)
    fail(ErrorKind::data, "{}: a shard of {} tokens has {} bytes, found {}; it may be cut off", name, tokens,
         expected, size);
  return {kHeaderBytes, tokens, kind->width};
}

TokenWriter::TokenWriter(FileHandle file, std::string path, int width, bool header)
    : file_(std::move(file)),
      path_(std::move(path)),
      width_(width),
      header_(header),
      written_(header ? kHeaderBytes : 0) {
  if (file_.get() < 0)
    fail(ErrorKind::failure, "{}: cannot write: {}", path_.empty() ? "a temporary file" : path_, reason());
}

TokenWriter::TokenWriter(const std::string& path, int width)
    : TokenWriter(FileHandle(::open((path + ".tmp").c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)),
                  path, width, true) {}

TokenWriter TokenWriter::temporary(int width) {
  std::string pattern = std::filesystem::temp_directory_path() / "quaver-tokens-XXXXXX";
  FileHandle file(::mkostemp(pattern.data(), O_CLOEXEC));
  if (file.get() >= 0) ::unlink(pattern.c_str());
  return {std::move(file), "", width, false};
}

TokenWriter::TokenWriter(TokenWriter&& other) noexcept
    : file_(std::move(other.file_)),
      path_(std::exchange(other.path_, {})),
      width_(other.width_),
      header_(other.header_),
      held_(std::move(other.held_)),
      written_(other.written_),
      tokens_(other.tokens_) {}

TokenWriter::~TokenWriter() {
  if (!path_.empty()) ::unlink((path_ + ".tmp").c_str());
}

void TokenWriter::append(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    // Little-endian: the low bytes are the first.
    const auto* bytes = reinterpret_cast<const std::byte*>(&token);
    held_.insert(held_.end(), bytes, bytes + width_);
    if (held_.size() >= kHeldBytes) flush();
  }
  tokens_ += static_cast<std::int64_t>(tokens.size());
}

void TokenWriter::flush() {
  write_at(written_, held_);
  written_ += static_cast<std::int64_t>(held_.size());
  held_.clear();
}

void TokenWriter::write_at(std::int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(file_.get(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && path_.empty())
      fail(ErrorKind::failure, "temporary tokens: cannot write to {}: {}. Hint: TMPDIR names another folder",
           std::filesystem::temp_directory_path().string(), reason());
    if (count < 0) fail(ErrorKind::failure, "{}: cannot write: {}", path_, reason());
    offset += count;
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

void TokenWriter::finish() {
  flush();
  std::array<std::int32_t, 256> header{};
  const Kind& kind = kind_of_width(width_);
  header[0] = kind.magic;
  header[1] = kind.version;
  header[2] = static_cast<std::int32_t>(tokens_);
  write_at(0, std::as_bytes(std::span(header)));
  if (::fsync(file_.get()) != 0 || ::rename((path_ + ".tmp").c_str(), path_.c_str()) != 0)
    fail(ErrorKind::failure, "{}: cannot write: {}", path_, reason());
  path_.clear();
}

int TokenWriter::release() {
  flush();
  const int descriptor = ::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0);
  if (descriptor < 0) fail(ErrorKind::failure, "temporary tokens: {}", reason());
  return descriptor;
}

}  // namespace quaver
