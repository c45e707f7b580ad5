#include "base/files.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

TEST(ReadFile, ReturnsEveryByte) {
  const TemporaryFolder folder;
  const std::string content("a\0\r\n\xFF", 5);
  EXPECT_EQ(read_file(folder.write("some", content)), content);
  EXPECT_EQ(read_file(folder.write("empty", "")), "");
}

TEST(ReadFile, StopsAtTheLimit) {
  const TemporaryFolder folder;
  const std::string path = folder.write("some", "abcdef");
  EXPECT_EQ(read_file(path, 4), "abcd");
  EXPECT_EQ(read_file(path, 0), "");
}

TEST(ReadFile, NamesThePathAndTheReason) {
  const TemporaryFolder folder;
  const std::string missing = folder.path("missing");
  EXPECT_EQ(error_message(ErrorKind::data, [&] { read_file(missing); }),
            missing + ": cannot open: No such file or directory");
  EXPECT_EQ(error_message(ErrorKind::data, [&] { read_file(folder.path()); }),
            folder.path() + ": expected a file, found a folder");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [] { read_file("/dev/zero"); }), "a device or pipe"));
}

TEST(InputFile, RefusesToReadPastTheEnd) {
  const TemporaryFolder folder;
  const InputFile file(folder.write("some", "abc"));
  std::byte buffer[4];
  EXPECT_EQ(file.size(), 3u);
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { file.read(1, buffer); }),
                       "ends at byte 3, 2 bytes early"));
}

TEST(WriteFileAtomically, JoinsTheChunksAndReplacesTheOldFile) {
  const TemporaryFolder folder;
  const std::string path = folder.write("some", "something longer from before");
  const std::string a = "first ", b = "", c = "last";
  const std::span<const std::byte> chunks[] = {std::as_bytes(std::span(a)), std::as_bytes(std::span(b)),
                                               std::as_bytes(std::span(c))};
  write_file_atomically(path, chunks);
  EXPECT_EQ(read_file(path), "first last");
  EXPECT_FALSE(fs::exists(path + ".tmp"));
}

TEST(WriteFileAtomically, LeavesTheOldFileWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  const std::string path = folder.write("some", "old");
  fs::create_symlink("/dev/full", path + ".tmp");
  const std::string message = error_message(ErrorKind::failure, [&] { write_file_atomically(path, "new"); });
  EXPECT_TRUE(contains(message, path + ": cannot write: No space left on device")) << message;
  EXPECT_EQ(read_file(path), "old");
  EXPECT_FALSE(fs::exists(fs::symlink_status(path + ".tmp")));
}

TEST(WriteFileAtomically, FailsWhereNoFileCanBe) {
  const TemporaryFolder folder;
  error_message(ErrorKind::failure, [&] { write_file_atomically(folder.path("missing/some"), "new"); });
  fs::create_directory(folder.path("taken"));
  error_message(ErrorKind::failure, [&] { write_file_atomically(folder.path("taken"), "new"); });
  EXPECT_FALSE(fs::exists(folder.path("taken.tmp")));
}

TEST(AppendFile, AddsLinesThatAreSeenAtOnce) {
  const TemporaryFolder folder;
  const std::string path = folder.write("metrics", "0\n");
  AppendFile file(path);
  file.append("1");
  EXPECT_EQ(read_file(path), "0\n1\n");
  file.append("2");
  EXPECT_EQ(read_file(path), "0\n1\n2\n");
}

TEST(AppendFile, ReportsAFullDisk) {
  AppendFile file("/dev/full");
  EXPECT_EQ(error_message(ErrorKind::failure, [&] { file.append("1"); }),
            "/dev/full: cannot append: No space left on device");
}

TEST(AppendFile, ReportsWhatCannotBeOpened) {
  const TemporaryFolder folder;
  error_message(ErrorKind::failure, [&] { AppendFile(folder.path("missing/metrics")); });
}

TEST(MakeDirectories, MakesAllAndAcceptsExistingOnes) {
  const TemporaryFolder folder;
  make_directories(folder.path("a/b/c"));
  make_directories(folder.path("a/b/c"));
  EXPECT_TRUE(fs::is_directory(folder.path("a/b/c")));
}

TEST(MakeDirectories, FailsBelowAFile) {
  const TemporaryFolder folder;
  const std::string file = folder.write("a", "");
  error_message(ErrorKind::failure, [&] { make_directories(file); });
  error_message(ErrorKind::failure, [&] { make_directories(file + "/b"); });
}

}  // namespace
}  // namespace quaver
