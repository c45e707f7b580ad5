#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <sstream>
#include <thread>

#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "kill_victim.h"
#include "support/child_process.h"
#include "train/run_folder.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;
using std::chrono::microseconds;

/// How many kills (environment variable QUAVER_KILLS; scripts/kill asks for more).
int number_of_kills(int usual) {
  const char* asked = std::getenv("QUAVER_KILLS");
  return asked ? std::atoi(asked) : usual;
}

/// Sees the folders of a save or a deletion appear in a run's checkpoints.
class SaveWatcher {
 public:
  explicit SaveWatcher(const std::string& checkpoints)
      : descriptor_(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
    ::inotify_add_watch(descriptor_, checkpoints.c_str(), IN_CREATE | IN_MOVED_TO);
  }
  ~SaveWatcher() { ::close(descriptor_); }
  SaveWatcher(const SaveWatcher&) = delete;
  SaveWatcher& operator=(const SaveWatcher&) = delete;

  /// Waits until a ".tmp" or ".trash" appears, or the child ends.
  void wait(ChildProcess& child) {
    while (!has_event() && child.running()) {
      pollfd poll{descriptor_, POLLIN, 0};
      ::poll(&poll, 1, 20);
    }
  }

 private:
  bool has_event() {
    alignas(inotify_event) char buffer[4096];
    const ssize_t bytes = ::read(descriptor_, buffer, sizeof buffer);
    for (ssize_t offset = 0; offset < bytes;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer + offset);
      const std::string name = event->len > 0 ? event->name : "";
      if (name.ends_with(".tmp") || name.ends_with(".trash")) return true;
      offset += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
    }
    return false;
  }

  int descriptor_;
};

class SlowKillTest : public testing::Test {
 protected:
  SlowKillTest() {
    write_text(folder);
    config = victim_config(folder.path("."), folder.path("run"));
    RunConfig whole = config;
    whole.run.dir = folder.path("whole");
    TrainingObserver silent;
    run_training(whole, silent);
    expected = final_state(whole.run.dir);
    fs::create_directories(checkpoints_path(config.run.dir));
  }

  std::vector<std::string> final_state(const std::string& run) const {
    std::vector<std::string> files;
    for (const char* name : {"model.safetensors", "fp8_state.safetensors", "optimizer.safetensors"})
      files.push_back(
          read_file(fmt::format("{}/step-{:08}/{}", checkpoints_path(run), config.train.steps, name)));
    return files;
  }

  /// The last checkpoint that the victim said was durable.
  std::int64_t acknowledged() const {
    std::istringstream lines(read_file(output));
    std::int64_t step = 0;
    for (std::string word; lines >> word;) {
      if (word == "saved") lines >> step;
    }
    return step;
  }

  /// Until its handler of SIGTERM is there: before, the signal would be none of the run's.
  void wait_until_it_listens(ChildProcess& child) const {
    while (child.running() && !read_file(output).starts_with("listening\n"))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  /// What the victim said it saved is there, and whole.
  void expect_nothing_lost() {
    PosixFileSystem files;
    const NewestCheckpoint newest = CheckpointStore(files, checkpoints_path(config.run.dir)).find_newest();
    EXPECT_TRUE(newest.damaged.empty()) << newest.damaged.front().reason;
    EXPECT_GE(newest.manifest ? newest.manifest->step : 0, acknowledged());
  }

  /// The run is complete: it ended as the one that nobody disturbed. Makes room for the next.
  void expect_same_bits() {
    EXPECT_TRUE(final_state(config.run.dir) == expected) << "the interrupted run ended in other bits";
    ++completed;
    fs::remove_all(config.run.dir);
    fs::create_directories(checkpoints_path(config.run.dir));
  }

  /// For a test of hours, and for one that is stopped before its end.
  void report(int kills, int aimed) const {
    fmt::print("{} kills, {} of them aimed into a save or a deletion; {} runs completed\n", kills, aimed,
               completed);
    std::fflush(stdout);
  }

  std::vector<std::string> victim() const { return {QUAVER_KILL_VICTIM, folder.path("."), config.run.dir}; }

  /// Some time of the length of a victim's whole life, most of them shorter.
  microseconds random_time() { return microseconds(random() % (random() % 120'000 + 1)); }

  TemporaryFolder folder;
  const std::string output = folder.path("output");
  RunConfig config;
  std::vector<std::string> expected;
  std::mt19937_64 random{1};
  int completed = 0;
};

TEST_F(SlowKillTest, NothingAcknowledgedIsLostAndTheRunEndsInTheSameBits) {
  const int kills = number_of_kills(500);
  int aimed = 0;
  for (int kill = 0; kill < kills && !HasFailure(); ++kill) {
    SaveWatcher watcher(checkpoints_path(config.run.dir));
    ChildProcess child(victim(), output);
    if (kill % 2 == 0) {
      std::this_thread::sleep_for(random_time());
    } else {
      for (std::uint64_t save = random() % 6; save-- > 0;) watcher.wait(child);
      watcher.wait(child);
      std::this_thread::sleep_for(microseconds(random() % 4000));
      ++aimed;
    }
    child.signal(SIGKILL);
    const std::optional<int> exit_code = child.wait();
    expect_nothing_lost();
    EXPECT_EQ(exit_code.value_or(0), 0) << read_file(output);
    if (exit_code) expect_same_bits();
    if ((kill + 1) % 500 == 0) report(kill + 1, aimed);
  }
  EXPECT_EQ(aimed, kills / 2);
  EXPECT_GT(completed, kills / 50) << "runs came to their end between the kills";
}

TEST_F(SlowKillTest, ARunThatIsTerminatedGoesOnExactly) {
  const int signals = number_of_kills(200);
  int stopped = 0;
  for (int run = 0; stopped < signals && !HasFailure(); ++run) {
    ASSERT_LT(run, 10 * signals) << "only " << stopped << " signals met a training run";
    ChildProcess child(victim(), output);
    wait_until_it_listens(child);
    std::this_thread::sleep_for(random_time());
    child.signal(SIGTERM);
    const std::optional<int> exit_code = child.wait();
    ASSERT_TRUE(exit_code) << "the signal ended it";
    expect_nothing_lost();
    if (*exit_code == 75)
      ++stopped;
    else
      EXPECT_EQ(*exit_code, 0) << read_file(output);  // the signal came behind the last step
    if (*exit_code == 0) expect_same_bits();
  }
  EXPECT_EQ(stopped, signals);
  EXPECT_GT(completed, 0);
}

}  // namespace
}  // namespace quaver
