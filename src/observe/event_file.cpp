#include "observe/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>

#include "base/check.h"
#include "base/crc32c.h"

namespace quaver {
namespace {

void put_little_endian(std::string& out, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
}

/// A protocol buffer message as it is written: fields one after the other.
class Message {
 public:
  Message& integer(int field, std::uint64_t value) {
    key(field, 0);
    varint(value);
    return *this;
  }
  Message& number(int field, double value) {
    key(field, 1);
    put_little_endian(bytes_, std::bit_cast<std::uint64_t>(value), 8);
    return *this;
  }
  Message& number(int field, float value) {
    key(field, 5);
    put_little_endian(bytes_, std::bit_cast<std::uint32_t>(value), 4);
    return *this;
  }
  Message& text(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void key(int field, int wire_type) { varint(static_cast<std::uint64_t>(field) << 3 | wire_type); }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7F) | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// Fields of Event, Summary, Summary.Value and SessionLog.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kSummaryValue = 1, kTag = 1, kSimpleValue = 2;
constexpr int kSessionStatus = 1, kSessionStarted = 1;

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) + 0xA282EAD8u;
}

/// A new file; TensorBoard looks for "tfevents" in the name and reads files in the order of their names.
std::string new_path(const std::string& folder, int attempt) {
  return fmt::format("{}/events.out.tfevents.{:010}.quaver.{}", folder, static_cast<std::int64_t>(now()),
                     attempt);
}

int create(const std::string& folder, std::string& path) {
  for (int attempt = 0;; ++attempt) {
    path = new_path(folder, attempt);
    const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor >= 0) return descriptor;
    if (errno != EEXIST)
      fail(ErrorKind::failure, "{}: cannot write: {}", path, std::generic_category().message(errno));
  }
}

void write_record(const FileHandle& file, const std::string& path, const Message& event) {
  const std::string record = tfrecord(event.bytes());
  if (!write_all(file.get(), std::as_bytes(std::span(record))))
    fail(ErrorKind::failure, "{}: cannot write: {}", path, std::generic_category().message(errno));
}

}  // namespace

std::string tfrecord(std::string_view bytes) {
  std::string record;
  put_little_endian(record, bytes.size(), 8);
  put_little_endian(record, masked_crc32c(record), 4);
  record += bytes;
  put_little_endian(record, masked_crc32c(bytes), 4);
  return record;
}

EventFile::EventFile(const std::string& folder, std::int64_t first_step) : file_(create(folder, path_)) {
  write_record(file_, path_, Message().number(kWallTime, now()).text(kFileVersion, "brain.Event:2"));
  write_record(file_, path_,
               Message()
                   .number(kWallTime, now())
                   .integer(kStep, static_cast<std::uint64_t>(first_step))
                   .text(kSessionLog, Message().integer(kSessionStatus, kSessionStarted).bytes()));
}

void EventFile::append(std::int64_t step, std::span<const Scalar> scalars) {
  Message summary;
  for (const Scalar& scalar : scalars)
    summary.text(kSummaryValue, Message().text(kTag, scalar.name).number(kSimpleValue, scalar.value).bytes());
  write_record(file_, path_,
               Message()
                   .number(kWallTime, now())
                   .integer(kStep, static_cast<std::uint64_t>(step))
                   .text(kSummary, summary.bytes()));
}

}  // namespace quaver
