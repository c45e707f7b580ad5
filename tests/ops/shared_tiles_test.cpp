/// Tiles that threads share: each is taken once, by whoever is there, and the next one is known before.
#include "ops/cpu/shared_tiles.h"

#include <gtest/gtest.h>

#include <thread>

namespace quaver::cpu {
namespace {

using Taken = std::vector<std::int64_t>;

Taken all_of_one(std::int64_t tiles, int threads, int thread) {
  SharedTiles shared(tiles, threads);
  Taken taken;
  while (const auto turn = shared.take(thread)) taken.push_back(turn->tile);
  return taken;
}

TEST(SharedTilesTest, TwoThreadsMeetInTheMiddle) {
  SharedTiles shared(5, 2);
  Taken taken;
  for (int thread : {0, 1, 0, 1, 0}) taken.push_back(shared.take(thread)->tile);
  EXPECT_EQ(taken, (Taken{0, 4, 1, 3, 2}));
  EXPECT_FALSE(shared.take(0));
  EXPECT_FALSE(shared.take(1));
}

TEST(SharedTilesTest, AThreadAloneTakesAllWhicheverItIs) {
  EXPECT_EQ(all_of_one(4, 1, 0), (Taken{0, 1, 2, 3}));
  EXPECT_EQ(all_of_one(4, 2, 1), (Taken{3, 2, 1, 0}));
  EXPECT_EQ(all_of_one(6, 4, 2), (Taken{3, 4, 5, 0, 1, 2}));
  EXPECT_EQ(all_of_one(6, 3, 0), (Taken{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(all_of_one(2, 7, 6), (Taken{1, 0}));
}

TEST(SharedTilesTest, TheNextOneIsKnownWhileNobodyElseCanTakeIt) {
  SharedTiles shared(4, 2);
  EXPECT_EQ(shared.take(0)->next, 1);
  EXPECT_EQ(shared.take(1)->next, 2);
  // The last one is expected by thread 1, which began earlier.
  const auto turn = shared.take(0);
  EXPECT_EQ(turn->tile, 1);
  EXPECT_FALSE(turn->next);
  EXPECT_EQ(shared.take(1)->tile, 2);

  SharedTiles of_one(2, 1);
  EXPECT_EQ(of_one.take(0)->next, 1);
  EXPECT_FALSE(of_one.take(0)->next);
}

TEST(SharedTilesTest, TheFirstIsWhatAThreadTakesFirst) {
  for (int threads = 1; threads <= 5; ++threads) {
    for (std::int64_t tiles = 1; tiles <= 7; ++tiles) {
      for (int thread = 0; thread < threads; ++thread) {
        const auto first = SharedTiles::first(tiles, threads, thread);
        if (!first) continue;
        EXPECT_EQ(*first, SharedTiles(tiles, threads).take(thread)->tile) << threads << " " << thread;
      }
    }
  }
  EXPECT_EQ(SharedTiles::first(1, 4, 0), std::nullopt);
  EXPECT_EQ(SharedTiles::first(1, 4, 3), 0);
}

TEST(SharedTilesTest, EachIsTakenOnceByThreadsAtOnce) {
  constexpr int kThreads = 5;
  constexpr std::int64_t kTiles = 20000;
  SharedTiles shared(kTiles, kThreads);
  std::vector<std::atomic<int>> times(kTiles);
  std::vector<std::thread> team;
  for (int thread = 0; thread < kThreads; ++thread) {
    team.emplace_back([&, thread] {
      while (const auto turn = shared.take(thread)) ++times[static_cast<std::size_t>(turn->tile)];
    });
  }
  for (std::thread& member : team) member.join();
  for (const auto& count : times) ASSERT_EQ(count, 1);
}

}  // namespace
}  // namespace quaver::cpu
