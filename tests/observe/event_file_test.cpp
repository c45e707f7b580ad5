/// Frames byte by byte; whole files are parsed by TensorBoard's own reader in tests/oracle.
#include "observe/event_file.h"

#include <gtest/gtest.h>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

/// The checksums are the definition's, computed bit by bit elsewhere.
TEST(EventFile, RecordsAreFramedAndChecked) {
  EXPECT_EQ(tfrecord("abc"), std::string("\x03\0\0\0\0\0\0\0"
                                         "\xB0\x99\x49\x0E"
                                         "abc"
                                         "\x6E\x57\xF1\x21",
                                         19));
}

TEST(EventFile, EveryProcessWritesItsOwn) {
  const TemporaryFolder folder;
  EventFile first(folder.path("."), 1), second(folder.path("."), 4);
  EXPECT_NE(first.path(), second.path());
  EXPECT_TRUE(contains(first.path(), "tfevents"));
  const std::string before = read_file(second.path());
  const std::vector<Scalar> scalars = {{"loss", 1.5f}};
  first.append(1, scalars);
  EXPECT_TRUE(contains(read_file(first.path()), "loss"));
  EXPECT_EQ(read_file(second.path()), before);
  error_message(ErrorKind::failure, [&] { EventFile(folder.path("none"), 1); });
}

}  // namespace
}  // namespace quaver
