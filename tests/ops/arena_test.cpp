#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "ops/arena.h"
#include "quaver/error.h"
#include "support/errors.h"

namespace quaver {
namespace {

TEST(Arena, BlocksAreAlignedAndLargeEnough) {
  const auto arena = std::make_shared<Arena>();
  for (std::size_t bytes : {0, 1, 63, 64, 65, 4097, 1000003}) {
    const auto block = arena->allocate(bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block->data()) % 64, 0u) << bytes;
    EXPECT_GE(block->bytes(), bytes);
    std::memset(block->data(), 0xAB, block->bytes());
  }
}

TEST(Arena, RoundingWastesAtMostAnEighth) {
  const auto arena = std::make_shared<Arena>();
  for (std::size_t bytes = 1000; bytes < (std::size_t{1} << 22); bytes = bytes * 21 / 20)
    EXPECT_LE(arena->allocate(bytes)->bytes(), bytes + bytes / 8 + 1) << bytes;
}

TEST(Arena, AFreedBlockIsUsedAgain) {
  const auto arena = std::make_shared<Arena>();
  auto first = arena->allocate(100000);
  const auto* address = first->data();
  first.reset();
  EXPECT_EQ(arena->allocate(100000)->data(), address);
  EXPECT_EQ(arena->allocate(99990)->data(), address) << "sizes that round to the same one share blocks";
}

TEST(Arena, BlocksInUseAreNotHandedOutTwice) {
  const auto arena = std::make_shared<Arena>();
  const auto a = arena->allocate(1000), b = arena->allocate(1000);
  EXPECT_NE(a->data(), b->data());
}

TEST(Arena, CountsUsePeakAndReserve) {
  const auto arena = std::make_shared<Arena>();
  auto a = arena->allocate(640), b = arena->allocate(128);
  EXPECT_EQ(arena->use().in_use, 768);
  a.reset();
  b.reset();
  EXPECT_EQ(arena->use().in_use, 0);
  EXPECT_EQ(arena->use().peak, 768);
  EXPECT_EQ(arena->use().reserved, 768);
  a = arena->allocate(640);
  EXPECT_EQ(arena->use().peak, 768);
  EXPECT_EQ(arena->use().reserved, 768) << "the block came from the cache";
}

TEST(Arena, AStorageKeepsItsArenaAlive) {
  auto arena = std::make_shared<Arena>();
  const std::weak_ptr<Arena> watch = arena;
  auto block = arena->allocate(256);
  arena.reset();
  EXPECT_FALSE(watch.expired());
  std::memset(block->data(), 1, block->bytes());
  block.reset();
  EXPECT_TRUE(watch.expired());
}

TEST(Arena, ThreadsNeverShareABlock) {
  constexpr int kThreads = 4, kRounds = 2000;
  const auto arena = std::make_shared<Arena>();
  std::vector<int> clashes(kThreads);
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      for (int round = 0; round < kRounds; ++round) {
        const auto block = arena->allocate(64 + 64 * (round % 3));
        std::memset(block->data(), id, block->bytes());
        for (std::size_t i = 0; i < block->bytes(); ++i)
          clashes[id] += std::to_integer<int>(block->data()[i]) != id;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(clashes, std::vector<int>(kThreads));
  EXPECT_EQ(arena->use().in_use, 0);
}

TEST(Arena, MoreMemoryThanThereIsIsAnError) {
  EXPECT_THROW(std::make_shared<Arena>()->allocate(~std::size_t{0} - 3), std::bad_alloc);
}

TEST(Arena, ABackendRefusesANegativeExtent) {
  const auto backend = make_backend("reference");
  const std::string message = error_message(ErrorKind::usage, [&] {
    backend->allocate(DType::f32, {3, -1});
  });
  EXPECT_TRUE(contains(message, "[3, -1]")) << message;
}

}  // namespace
}  // namespace quaver
