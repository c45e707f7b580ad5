#include "formats/checkpoint_store.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

#include "support/errors.h"
#include "support/simulated_disk.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

const std::string kFolder = "/run/checkpoints";

/// Files whose bytes tell which step they are of.
class Contents {
 public:
  explicit Contents(std::int64_t step)
      : weights_(fmt::format("weights of step {}: {}", step, std::string(40, static_cast<char>('a' + step)))),
        state_(fmt::format("state {}", step)) {}
  std::vector<CheckpointFile> files() const {
    const auto bytes = std::as_bytes(std::span(weights_));
    return {{"weights", {bytes.first(10), bytes.subspan(10)}},
            {"state", {std::as_bytes(std::span(state_))}},
            {"empty", {}}};
  }

 private:
  std::string weights_, state_;
};

std::string read_all(FileSystem& files, const std::string& path) {
  const auto file = files.open(path);
  std::string text(file->size(), '\0');
  file->read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void expect_contents(FileSystem& files, const CheckpointStore& store, std::int64_t step) {
  const Contents contents(step);
  for (const CheckpointFile& file : contents.files()) {
    std::string expected;
    for (const auto chunk : file.chunks)
      expected.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
    EXPECT_EQ(read_all(files, store.path_of(step) + "/" + file.name), expected) << step;
  }
}

void save(CheckpointStore& store, std::int64_t step) {
  const Contents contents(step);
  store.save(step, contents.files());
}

/// Steps 1, 2, ...: saved, and the newest two kept. `acknowledged` is the last one whose save returned.
void save_cycles(CheckpointStore& store, std::int64_t first, std::int64_t last, std::int64_t& acknowledged) {
  for (std::int64_t step = first; step <= last; ++step) {
    save(store, step);
    acknowledged = step;
    store.keep_newest(2);
  }
}

SimulatedDisk disk_with_run() {
  SimulatedDisk disk;
  disk.make_directory("/run");
  disk.sync_directory("/");
  return disk;
}

class CheckpointStoreTest : public testing::Test {
 protected:
  SimulatedDisk disk = disk_with_run();
  CheckpointStore store{disk, kFolder};
};

TEST_F(CheckpointStoreTest, WhatWasSavedIsFoundAndVerifies) {
  EXPECT_FALSE(store.find_newest().manifest);
  save(store, 7);
  save(store, 3);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{3, 7}));
  const NewestCheckpoint newest = store.find_newest();
  ASSERT_TRUE(newest.manifest);
  EXPECT_EQ(newest.manifest->step, 7);
  EXPECT_TRUE(newest.damaged.empty());
  expect_contents(disk, store, 7);
  expect_contents(disk, store, 3);
}

TEST_F(CheckpointStoreTest, ASaveReplacesOneOfTheSameStep) {
  save(store, 7);
  const std::string other = "other";
  const CheckpointFile file{"weights", {std::as_bytes(std::span(other))}};
  store.save(7, std::span(&file, 1));
  EXPECT_EQ(store.verify(7).files.size(), 1u);
  EXPECT_EQ(read_all(disk, store.path_of(7) + "/weights"), other);
  EXPECT_EQ(disk.list(kFolder).size(), 2u) << "the replaced one waits for the next clean-up";
  store.keep_newest(1);
  EXPECT_EQ(disk.list(kFolder).size(), 1u);
}

TEST_F(CheckpointStoreTest, OnlyTheNewestAreKept) {
  for (const std::int64_t step : {10, 20, 100000000, 30}) save(store, step);
  store.keep_newest(2);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{30, 100000000}));
  error_message(ErrorKind::usage, [&] { store.keep_newest(0); });
}

TEST_F(CheckpointStoreTest, OtherNamesAreNoCheckpoints) {
  save(store, 5);
  for (const char* name :
       {"step-1", "step-00000001.tmp", "step--0000001", "step-0000000x", "steps", "step-000000010"})
    disk.make_directory(kFolder + "/" + name);
  disk.create(kFolder + "/step-00000009");  // a file
  EXPECT_EQ(store.steps(), std::vector<std::int64_t>{5});
}

TEST_F(CheckpointStoreTest, ADamagedOneIsReportedAndTheOneBeforeItTaken) {
  for (const std::int64_t step : {1, 2, 3}) save(store, step);
  disk.content(store.path_of(3) + "/weights")[0] ^= std::byte{1};
  disk.remove_file(store.path_of(2) + "/" + kManifestName);
  for (const bool recovering : {false, true}) {
    const NewestCheckpoint newest = recovering ? store.recover() : store.find_newest();
    ASSERT_TRUE(newest.manifest);
    EXPECT_EQ(newest.manifest->step, 1);
    ASSERT_EQ(newest.damaged.size(), 2u);
    EXPECT_EQ(newest.damaged[0].path, store.path_of(3));
    EXPECT_TRUE(contains(newest.damaged[0].reason, "CRC32C")) << newest.damaged[0].reason;
  }
  EXPECT_EQ(store.steps(), std::vector<std::int64_t>{1});
  EXPECT_TRUE(disk.exists(store.path_of(3) + ".damaged"));
}

TEST_F(CheckpointStoreTest, NothingIsRenamedWhenNoneIsWhole) {
  save(store, 1);
  disk.content(store.path_of(1) + "/state")[0] ^= std::byte{1};
  const NewestCheckpoint newest = store.recover();
  EXPECT_FALSE(newest.manifest);
  EXPECT_EQ(newest.damaged.size(), 1u);
  EXPECT_EQ(store.steps(), std::vector<std::int64_t>{1});
}

TEST_F(CheckpointStoreTest, EveryFlippedBitAndEveryTruncationIsDetected) {
  save(store, 1);
  for (const std::string name : {"weights", "state", "empty", kManifestName}) {
    std::vector<std::byte>& content = disk.content(store.path_of(1) + "/" + name);
    const std::vector<std::byte> whole = content;
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
      content[bit / 8] ^= std::byte{1} << bit % 8;
      EXPECT_THROW(store.verify(1), Error) << name << " bit " << bit;
      content = whole;
    }
    for (std::size_t size = 0; size < whole.size(); ++size) {
      content.resize(size);
      EXPECT_THROW(store.verify(1), Error) << name << " of " << size << " bytes";
      content = whole;
    }
    content.push_back(std::byte{0});
    EXPECT_THROW(store.verify(1), Error) << name;
    content = whole;
  }
  store.verify(1);
}

/// Crashes at the `n`-th operation of three saves, restarts, and goes on. False once `n` is behind them all.
bool survive_crash(int n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  SimulatedDisk disk = disk_with_run();
  CheckpointStore store(disk, kFolder);
  std::int64_t acknowledged = 0;
  disk.crash_at(n);
  bool crashed = false;
  try {
    save_cycles(store, 1, 4, acknowledged);
  } catch (const Crash&) {
    crashed = true;
  }
  disk.restart(random);
  const NewestCheckpoint newest = store.recover();
  const std::int64_t step = newest.manifest ? newest.manifest->step : 0;
  EXPECT_GE(step, acknowledged) << "operation " << n << ", seed " << seed;
  EXPECT_TRUE(newest.damaged.empty())
      << "operation " << n << ", seed " << seed << ": an unfinished save has a name";
  if (step > 0) expect_contents(disk, store, step);
  save_cycles(store, step + 1, step + 2, acknowledged);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{step + 1, step + 2}));
  EXPECT_EQ(disk.list(kFolder).size(), 2u) << "left-overs";
  return crashed;
}

TEST(CheckpointCrashTest, NothingAcknowledgedIsLostWhereverItStops) {
  int n = 1;
  for (bool crashed = true; crashed; ++n) {
    for (std::uint64_t seed = 0; seed < 50; ++seed) crashed = survive_crash(n, seed);
    ASSERT_FALSE(testing::Test::HasFailure());
  }
  EXPECT_GT(n, 60) << "operations of the saves";
}

TEST(CheckpointCrashTest, EveryFailingOperationIsSurvived) {
  for (int n = 1;; ++n) {
    SimulatedDisk disk = disk_with_run();
    CheckpointStore store(disk, kFolder);
    std::int64_t acknowledged = 0;
    save_cycles(store, 1, 2, acknowledged);
    const int before = disk.operations();
    disk.fail_at(n);
    bool failed = false;
    try {
      save_cycles(store, 3, 3, acknowledged);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::failure);
      failed = true;
    }
    if (disk.operations() - before < n) break;
    EXPECT_TRUE(failed) << "operation " << n;
    const NewestCheckpoint newest = store.find_newest();
    ASSERT_TRUE(newest.manifest);
    EXPECT_GE(newest.manifest->step, acknowledged) << "operation " << n;
    EXPECT_TRUE(newest.damaged.empty()) << "operation " << n;
    save_cycles(store, 4, 5, acknowledged);
    EXPECT_EQ(disk.list(kFolder).size(), 2u) << "operation " << n;
  }
}

TEST(CheckpointCrashTest, ADiskThatIsFullAtAnyByteKeepsWhatWasSaved) {
  bool saved = false;
  std::size_t room = 0;
  for (; !saved; ++room) {
    SimulatedDisk disk = disk_with_run();
    CheckpointStore store(disk, kFolder);
    std::int64_t acknowledged = 0;
    save_cycles(store, 1, 2, acknowledged);
    disk.limit_space(room);
    try {
      save_cycles(store, 3, 3, acknowledged);
      saved = true;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::failure);
      EXPECT_TRUE(contains(error.what(), "step-00000003.tmp/")) << error.what();
      EXPECT_TRUE(contains(error.what(), "No space left on device")) << error.what();
      EXPECT_EQ(disk.list(kFolder).size(), 2u) << "left-overs with room for " << room << " bytes";
    }
    const NewestCheckpoint newest = store.recover();
    ASSERT_TRUE(newest.manifest);
    EXPECT_TRUE(newest.damaged.empty());
    EXPECT_EQ(newest.manifest->step, acknowledged);
    expect_contents(disk, store, acknowledged);
    disk.limit_space(std::nullopt);
    save_cycles(store, 4, 5, acknowledged);
    EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{4, 5}));
  }
  EXPECT_GT(room, 100u) << "bytes of a checkpoint";
}

TEST(CheckpointManifestTest, NamesThatLeadOutOfTheFolderAreRefused) {
  for (const std::string name : {"../x", "/x", "a/b", "..", ".", ""}) {
    const CheckpointManifest manifest{1, {{name, 0, 0}}};
    EXPECT_THROW(parse_manifest(format_manifest(manifest)), Error) << name;
  }
  const CheckpointManifest good{12, {{"a", 5, 0xDEADBEEF}}};
  EXPECT_EQ(parse_manifest(format_manifest(good)), good);
  EXPECT_THROW(parse_manifest(format_manifest(good) + " "), Error);
}

TEST(PosixFileSystemTest, DoesWhatItsNamesSay) {
  const TemporaryFolder folder;
  PosixFileSystem files;
  CheckpointStore store(files, folder.path("checkpoints"));
  save(store, 1);
  save(store, 2);
  store.keep_newest(1);
  EXPECT_EQ(store.steps(), std::vector<std::int64_t>{2});
  expect_contents(files, store, 2);
  EXPECT_EQ(files.list(folder.path("checkpoints")).size(), 1u);
  const std::string missing = folder.path("missing/file");
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { files.create(missing); }), missing));
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { files.open(missing); }), missing));
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { files.list(missing); }), missing));
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { files.sync_directory(missing); }), missing));
}

}  // namespace
}  // namespace quaver
