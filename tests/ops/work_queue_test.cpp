#include "ops/cuda/work_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace quaver::cuda {
namespace {

/// Writes down what reached the device: numbers started one by one, and whole lists after a -1.
class WorkQueueTest : public testing::Test {
 protected:
  struct Repeat final : Recording {
    Repeat(WorkList works, std::vector<int>& to) : list(std::move(works)), started(to) {}
    void replay() override {
      started.push_back(-1);
      list.start();
    }
    WorkList list;
    std::vector<int>& started;
  };

  Recorded record(const WorkList& list) {
    if (refuses) return {nullptr, "refused"};
    return {std::make_unique<Repeat>(list, started), ""};
  }
  void add(int number) {
    queue.add(
        "number", [this, number] { started.push_back(number); }, number);
  }
  /// What reaches the device when these are added inside one `run`.
  std::vector<int> run(const std::vector<int>& numbers) {
    started.clear();
    queue.run([&] {
      for (const int number : numbers) add(number);
      EXPECT_TRUE(started.empty()) << "nothing may start before the list is whole";
    });
    return started;
  }

  bool refuses = false;
  std::vector<int> started;
  WorkQueue queue{nullptr, [this](const WorkList& list) { return record(list); }};
};

using Numbers = std::vector<int>;

TEST_F(WorkQueueTest, OutsideARunWorkStartsAtOnce) {
  add(3);
  EXPECT_EQ(started, Numbers{3});
}

TEST_F(WorkQueueTest, TheSecondEqualListIsRecordedAndFurtherOnesReplayed) {
  EXPECT_EQ(run({1, 2}), (Numbers{1, 2}));
  EXPECT_EQ(run({1, 2}), (Numbers{-1, 1, 2}));
  EXPECT_EQ(run({1, 2}), (Numbers{-1, 1, 2}));
  EXPECT_EQ(queue.use().direct, 1);
  EXPECT_EQ(queue.use().recorded, 1);
  EXPECT_EQ(queue.use().replayed, 2);
}

TEST_F(WorkQueueTest, AnotherValueOrderOrLengthIsAnotherList) {
  for (int round = 0; round < 2; ++round) run({1, 2});
  EXPECT_EQ(run({1, 3}), (Numbers{1, 3}));
  EXPECT_EQ(run({2, 1}), (Numbers{2, 1}));
  EXPECT_EQ(run({1}), Numbers{1});
  EXPECT_EQ(run({1, 2}), (Numbers{-1, 1, 2})) << "the first is still known";
}

TEST_F(WorkQueueTest, WorkThatCannotWaitComesInItsPlace) {
  for (int round = 0; round < 3; ++round) {
    started.clear();
    queue.run([&] {
      add(1);
      queue.stop_listing("a reason");
      EXPECT_EQ(started, Numbers{1});
      add(2);
      EXPECT_EQ(started, (Numbers{1, 2})) << "from here on at once";
    });
    EXPECT_EQ(started, (Numbers{1, 2}));
  }
  EXPECT_EQ(queue.use().why_direct, "a reason");
  EXPECT_EQ(run({1}), Numbers{1}) << "the next run lists again";
}

TEST_F(WorkQueueTest, AnExceptionLeavesWhatWasAddedBeforeIt) {
  EXPECT_THROW(queue.run([&] {
    add(1);
    throw std::runtime_error("stop");
  }),
               std::runtime_error);
  EXPECT_EQ(started, Numbers{1});
  add(2);
  EXPECT_EQ(started, (Numbers{1, 2}));
  EXPECT_EQ(run({5}), Numbers{5});
}

TEST_F(WorkQueueTest, ARunInsideARunBelongsToTheOuterOne) {
  for (int round = 0; round < 2; ++round) {
    started.clear();
    queue.run([&] {
      add(1);
      queue.run([&] { add(2); });
      EXPECT_TRUE(started.empty());
      add(3);
    });
  }
  EXPECT_EQ(started, (Numbers{-1, 1, 2, 3}));
}

TEST_F(WorkQueueTest, ARefusalIsReportedAndNotAskedForAgain) {
  refuses = true;
  for (int round = 0; round < 3; ++round) EXPECT_EQ(run({1, 2}), (Numbers{1, 2}));
  EXPECT_EQ(queue.use().direct, 3);
  EXPECT_EQ(queue.use().recorded, 0);
  EXPECT_EQ(queue.use().why_direct, "refused");
}

TEST_F(WorkQueueTest, TheOldestOfTooManyRecordingsIsForgotten) {
  for (int list = 0; list < 257; ++list) {
    for (int round = 0; round < 2; ++round) run({list});
  }
  EXPECT_EQ(queue.use().recorded, 257);
  EXPECT_EQ(run({256}), (Numbers{-1, 256}));
  EXPECT_EQ(run({0}), (Numbers{-1, 0})) << "recorded anew";
  EXPECT_EQ(queue.use().recorded, 258);
}

TEST_F(WorkQueueTest, ALongRunIsCutIntoListsThatStartMeanwhile) {
  WorkQueue cut(
      nullptr, [this](const WorkList& list) { return record(list); }, 1, 3);
  // Lists of 1, 2, 3 and 3 works, and what is left.
  const auto run_to = [&](int last) {
    started.clear();
    cut.run([&] {
      for (int number = 1; number <= last; ++number) {
        cut.add(
            "number", [this, number] { started.push_back(number); }, number);
        const std::size_t whole = number < 3 ? 1 : number < 6 ? 3 : number < 9 ? 6 : 9;
        EXPECT_EQ(std::count_if(started.begin(), started.end(), [](int n) { return n > 0; }),
                  static_cast<std::ptrdiff_t>(whole))
            << "after " << number;
      }
    });
    return started;
  };
  run_to(10);
  EXPECT_EQ(run_to(10), (Numbers{-1, 1, -1, 2, 3, -1, 4, 5, 6, -1, 7, 8, 9, -1, 10}));
  EXPECT_EQ(run_to(9), (Numbers{-1, 1, -1, 2, 3, -1, 4, 5, 6, -1, 7, 8, 9})) << "every run begins anew";
  EXPECT_EQ(run_to(11), (Numbers{-1, 1, -1, 2, 3, -1, 4, 5, 6, -1, 7, 8, 9, 10, 11}))
      << "the last list is a new one";
}

struct alignas(64) Aligned {
  int value = 0, rest[15] = {};
};

TEST_F(WorkQueueTest, WorksOfAnySizeAndAlignmentKeepWhatTheyCaptured) {
  const auto run_with = [&](int value) {
    started.clear();
    queue.run([&] {
      for (int number = value; number < value + 3; ++number) {
        add(number);
        const Aligned aligned{10 * number};
        const auto start = [this, aligned] {
          EXPECT_EQ(reinterpret_cast<std::uintptr_t>(&aligned) % alignof(Aligned), 0u);
          started.push_back(aligned.value);
        };
        queue.add("aligned", start, aligned);
        const char byte = static_cast<char>(number + 50);
        const auto of_bytes = [to = &started, byte, more = byte] { to->push_back(byte + more); };
        queue.add("bytes", of_bytes, byte);
      }
    });
    return started;
  };
  const auto expected = [](int value) {
    Numbers numbers;
    for (int number = value; number < value + 3; ++number) {
      for (const int n : {number, 10 * number, 2 * (number + 50)}) numbers.push_back(n);
    }
    return numbers;
  };
  EXPECT_EQ(run_with(1), expected(1));
  EXPECT_EQ(run_with(5), expected(5)) << "another list is started directly";
  Numbers replayed = expected(1);
  replayed.insert(replayed.begin(), -1);
  // A list of eight works, and the ninth.
  replayed.insert(replayed.begin() + 9, -1);
  EXPECT_EQ(run_with(1), replayed);
  EXPECT_EQ(run_with(1), replayed) << "the recording kept its own";
}

}  // namespace
}  // namespace quaver::cuda
