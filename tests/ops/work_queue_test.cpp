#include "ops/cuda/work_queue.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <vector>

namespace quaver::cuda {
namespace {

/// Writes down what reached the device: numbers started one by one, and whole lists after a -1.
class WorkQueueTest : public testing::Test {
 protected:
  struct Repeat final : Recording {
    Repeat(std::vector<Work> works, std::vector<int>& to) : list(std::move(works)), started(to) {}
    void replay() override {
      started.push_back(-1);
      for (const Work& work : list) work.start();
    }
    std::vector<Work> list;
    std::vector<int>& started;
  };

  Recorded record(const std::vector<Work>& list) {
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
  WorkQueue queue{nullptr, [this](const std::vector<Work>& list) { return record(list); }};
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
      nullptr, [this](const std::vector<Work>& list) { return record(list); }, 2);
  const auto add_to_cut = [&](int number) {
    cut.add(
        "number", [this, number] { started.push_back(number); }, number);
  };
  for (int round = 0; round < 3; ++round) {
    started.clear();
    cut.run([&] {
      add_to_cut(1);
      EXPECT_TRUE(started.empty());
      add_to_cut(2);
      EXPECT_FALSE(started.empty()) << "a list is whole";
      add_to_cut(round == 2 ? 9 : 3);
    });
  }
  EXPECT_EQ(started, (Numbers{-1, 1, 2, 9})) << "the first list is replayed, the other is new";
}

}  // namespace
}  // namespace quaver::cuda
