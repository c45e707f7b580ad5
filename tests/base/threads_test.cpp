/// Loops over threads: every item once, errors, loops inside loops and beside each other, and idle threads.
#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace quaver {
namespace {

class ThreadsTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadsTest, RunsEveryItemOnceOnAThreadOfTheTeam) {
  const Threads threads(GetParam());
  for (std::int64_t items : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(items));
    threads.for_each_on_thread(items, [&](std::int64_t item, int thread) {
      EXPECT_GE(thread, 0);
      EXPECT_LT(thread, threads.count());
      ++runs[static_cast<std::size_t>(item)];
    });
    for (const auto& count : runs) EXPECT_EQ(count, 1);
  }
}

TEST_P(ThreadsTest, BlocksCoverTheRange) {
  const Threads threads(GetParam());
  std::atomic<std::int64_t> sum = 0, blocks = 0;
  threads.for_blocks(103, 10, [&](std::int64_t begin, std::int64_t end) {
    EXPECT_EQ(begin % 10, 0);
    EXPECT_EQ(end, std::min<std::int64_t>(103, begin + 10));
    ++blocks;
    for (std::int64_t i = begin; i < end; ++i) sum += i;
  });
  EXPECT_EQ(blocks, 11);
  EXPECT_EQ(sum, 102 * 103 / 2);
}

TEST_P(ThreadsTest, ManyShortLoopsAndPausesInBetween) {
  const Threads threads(GetParam());
  std::atomic<std::int64_t> sum = 0;
  for (int loop = 0; loop < 2000; ++loop) {
    threads.for_each(5, [&](std::int64_t item) { sum += item; });
    if (loop % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // threads fall asleep
  }
  EXPECT_EQ(sum, 2000 * 10);
}

TEST_P(ThreadsTest, AnErrorEndsTheLoopAndReachesTheCaller) {
  const Threads threads(GetParam());
  std::atomic<int> runs = 0;
  const auto body = [&](std::int64_t item) {
    ++runs;
    if (item == 3) throw std::runtime_error("item 3");
    // All of them would take a minute: the thread that throws may be off the processor for a while.
    if (item > 3) std::this_thread::sleep_for(std::chrono::microseconds(50));
  };
  EXPECT_THROW(threads.for_each(1000000, body), std::runtime_error);
  EXPECT_LT(runs, 1000000);
  runs = 0;
  threads.for_each(3, body);  // the team still works
  EXPECT_EQ(runs, 3);
}

TEST_P(ThreadsTest, LoopsInsideLoopsRunOnTheirCallersThread) {
  const Threads threads(GetParam());
  std::atomic<int> runs = 0;
  threads.for_each(8, [&](std::int64_t) {
    const auto outer = std::this_thread::get_id();
    threads.for_each(4, [&](std::int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++runs;
    });
  });
  EXPECT_EQ(runs, 32);
}

TEST_P(ThreadsTest, SeveralCallersShareATeam) {
  const Threads threads(GetParam());
  std::atomic<int> runs = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int loop = 0; loop < 200; ++loop) threads.for_each(9, [&](std::int64_t) { ++runs; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 3 * 200 * 9);
}

INSTANTIATE_TEST_SUITE_P(Counts, ThreadsTest, ::testing::Values(1, 2, 3, 8));

TEST(ThreadsCount, ZeroMeansAllProcessors) {
  EXPECT_EQ(Threads(0).count(), available_threads());
  EXPECT_GE(available_threads(), 1);
}

}  // namespace
}  // namespace quaver
