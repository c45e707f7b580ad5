/// A run on a file system that is full, a real one: a small tmpfs, mounted where nobody else sees it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "program.h"
#include "support/errors.h"
#include "train/training_support.h"

namespace quaver {
namespace {

/// Trains to step 3, fills the disk, trains on, and again after making room; says what there is in between.
constexpr const char* kScript = R"(
mount -t tmpfs -o size=4m none disk || exit
train() { "$QUAVER" train "$CONFIG" data.path=text run.dir="$1" data.val_fraction=0.2 train.save_every=3 train.steps=$2; }
train whole 6 > log 2>&1 || exit
train disk/run 3 > log 2>&1 || exit
# Room for metrics, not for a checkpoint.
room=$(df --output=avail -k disk | tail -n 1)
head -c $((room - 32))k /dev/zero > disk/filler
train disk/run 6 > full 2>&1
echo "full: exit code $?"
ls disk/run/checkpoints
"$QUAVER" verify disk/run > log 2>&1
echo "verified: exit code $?"
rm disk/filler
train disk/run 6 > log 2>&1
echo "with room: exit code $?"
cmp disk/run/model.safetensors whole/model.safetensors && echo "the same bits"
)";

TEST(FullDiskTest, SlowARunThatCannotSaveKeepsItsCheckpointAndGoesOn) {
  const TemporaryFolder folder;
  write_text(folder);
  folder.write("script", kScript);
  const std::string command =
      "cd " + shell_quoted(folder.path(".")) + " && mkdir disk && QUAVER=" + shell_quoted(QUAVER_PROGRAM) +
      " CONFIG=" + shell_quoted(std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml") +
      " unshare --map-root-user --mount sh -c '. ./script' > out 2> err < /dev/null";
  if (std::system("unshare --map-root-user --mount true > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "this system lets nobody mount";
  ASSERT_EQ(std::system(command.c_str()), 0) << read_file(folder.path("err"));
  EXPECT_EQ(read_file(folder.path("out")),
            "full: exit code 1\n"
            "step-00000003\n"
            "verified: exit code 0\n"
            "with room: exit code 0\n"
            "the same bits\n");
  const std::string message = read_file(folder.path("full"));
  for (const char* part : {"disk/run/checkpoints/step-00000006.tmp/", "No space left on device",
                           "the checkpoint of step 6 needs ", "Hint: make room"})
    EXPECT_TRUE(contains(message, part)) << part << " in: " << message;
}

}  // namespace
}  // namespace quaver
