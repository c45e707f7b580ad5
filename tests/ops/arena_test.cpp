#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "ops/arena.h"
#include "ops/huge_pages.h"
#include "ops/memory_chunks.h"
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

MemorySource chunked_memory() {
  MemorySource source = host_memory();
  source.chunk_bytes = std::size_t{8} << 20;
  return source;
}

TEST(Arena, ChunksRepeatAddressesWhateverTheOrderOfFreeing) {
  const auto arena = std::make_shared<Arena>(chunked_memory());
  const std::vector<std::size_t> sizes = {1000, 3 << 20, 1000, 300000, 2 << 20, 1000};
  const auto addresses = [&](const std::vector<std::size_t>& order_of_freeing) {
    std::vector<std::shared_ptr<Storage>> blocks;
    std::vector<const std::byte*> taken;
    for (const std::size_t size : sizes) {
      blocks.push_back(arena->allocate(size));
      taken.push_back(blocks.back()->data());
    }
    for (const std::size_t i : order_of_freeing) blocks[i].reset();
    return taken;
  };
  addresses({0, 1, 2, 3, 4, 5});
  const auto settled = addresses({3, 0, 4, 1, 2, 5});
  EXPECT_EQ(addresses({5, 4, 3, 2, 1, 0}), settled);
  EXPECT_EQ(addresses({2, 0, 1, 4, 3, 5}), settled);
}

TEST(Arena, BlocksOfAllSizesShareAChunk) {
  const auto arena = std::make_shared<Arena>(chunked_memory());
  auto whole = arena->allocate(std::size_t{8} << 20);
  whole.reset();
  auto a = arena->allocate(3 << 20), b = arena->allocate(std::size_t{1} << 20), c = arena->allocate(4 << 20);
  EXPECT_EQ(arena->use().reserved, std::int64_t{8} << 20) << "cut from the one chunk there is";
  std::memset(a->data(), 1, a->bytes());
  std::memset(b->data(), 2, b->bytes());
  std::memset(c->data(), 3, c->bytes());
  EXPECT_EQ(std::to_integer<int>(*a->data()), 1);
  EXPECT_EQ(std::to_integer<int>(*b->data()), 2);
  a.reset();
  c.reset();
  b.reset();  // joins its neighbours on both sides
  whole = arena->allocate(std::size_t{8} << 20);
  EXPECT_EQ(arena->use().reserved, std::int64_t{8} << 20) << "grown together again";
  auto more = arena->allocate(std::size_t{1} << 20);
  EXPECT_EQ(arena->use().reserved, std::int64_t{16} << 20);
}

TEST(Arena, ChunksGoBackBeforeASourceIsExhausted) {
  MemorySource source = chunked_memory();
  std::size_t left = std::size_t{20} << 20;
  source.allocate = [&, allocate = source.allocate](std::size_t bytes) -> void* {
    if (bytes > left) return nullptr;
    left -= bytes;
    return allocate(bytes);
  };
  source.release = [&, release = source.release](void* block) {
    left += std::size_t{8} << 20;  // the only size that goes back below
    release(block);
  };
  const auto arena = std::make_shared<Arena>(source);
  arena->allocate(std::size_t{6} << 20).reset();
  const auto kept = arena->allocate(std::size_t{7} << 20);
  arena->allocate(std::size_t{5} << 20).reset();
  const auto large = arena->allocate(std::size_t{12} << 20);
  EXPECT_EQ(arena->use().reserved, std::int64_t{20} << 20);
  EXPECT_THROW(arena->allocate(std::size_t{9} << 20), std::bad_alloc);
}

/// Chunks of one array, so that addresses are known. Sizes count from its beginning.
class MemoryChunksTest : public testing::Test {
 protected:
  std::ptrdiff_t take(std::size_t bytes) {
    auto* const block = static_cast<std::byte*>(chunks.take(bytes));
    return block ? block - memory.data() : -1;
  }
  void give_back(std::size_t begin, std::size_t bytes) { chunks.give_back(memory.data() + begin, bytes); }

  std::vector<std::byte> memory = std::vector<std::byte>(4096);
  MemoryChunks chunks;
};

TEST_F(MemoryChunksTest, TakesTheSmallestHoleThatIsLargeEnoughAndTheLowestOfEquals) {
  chunks.add(memory.data(), 1024);
  ASSERT_EQ(take(1024), 0);
  give_back(0, 300);
  give_back(400, 100);
  give_back(600, 100);
  give_back(800, 224);
  EXPECT_EQ(take(100), 400);
  EXPECT_EQ(take(100), 600);
  EXPECT_EQ(take(100), 800) << "the rest of it stays a hole";
  EXPECT_EQ(take(124), 900);
  EXPECT_EQ(take(301), -1);
  EXPECT_EQ(take(300), 0);
  EXPECT_EQ(take(1), -1);
}

TEST_F(MemoryChunksTest, AFreedBlockJoinsTheHolesBesideIt) {
  chunks.add(memory.data(), 400);
  const auto restore = [&](std::initializer_list<std::size_t> order) {
    for (int i = 0; i < 4; ++i) ASSERT_EQ(take(100), 100 * i);
    for (const std::size_t begin : order) give_back(begin, 100);
    ASSERT_EQ(take(400), 0) << "one hole again";
    give_back(0, 400);
  };
  restore({0, 100, 200, 300});
  restore({300, 200, 100, 0});
  restore({0, 200, 100, 300});
  restore({100, 300, 200, 0});
  restore({300, 100, 0, 200});
}

TEST_F(MemoryChunksTest, NeighboursOfAnotherChunkStayApart) {
  chunks.add(memory.data() + 512, 512);
  chunks.add(memory.data(), 512);
  EXPECT_EQ(take(1024), -1);
  ASSERT_EQ(take(512), 0);
  ASSERT_EQ(take(512), 512);
  give_back(0, 512);
  give_back(512, 512);
  EXPECT_EQ(take(1024), -1);
  ASSERT_EQ(take(512), 0);
  const std::vector<MemoryChunks::Piece> unused = chunks.remove_unused();
  ASSERT_EQ(unused.size(), 1u) << "of the other a part is taken";
  EXPECT_EQ(unused[0], (MemoryChunks::Piece{memory.data() + 512, 512}));
  EXPECT_EQ(take(1), -1) << "a chunk that went back is no hole";
  give_back(0, 512);
  EXPECT_EQ(chunks.remove_unused().size(), 1u);
  EXPECT_TRUE(chunks.remove_unused().empty());
}

/// Against bookkeeping that looks at every byte.
TEST_F(MemoryChunksTest, RandomRequestsNeverOverlapAndEndAsOneHoleAChunk) {
  constexpr std::size_t kChunk = 1024;
  for (const std::size_t chunk : {2, 0, 3, 1}) chunks.add(memory.data() + chunk * kChunk, kChunk);
  std::vector<int> owner(memory.size(), 0);
  std::vector<std::pair<std::size_t, std::size_t>> taken;
  const auto first_free = [&](std::size_t bytes) {  // whether any hole of one chunk is large enough
    std::size_t run = 0;
    for (std::size_t i = 0; i < owner.size(); ++i) {
      if (i % kChunk == 0) run = 0;
      run = owner[i] == 0 ? run + 1 : 0;
      if (run == bytes) return true;
    }
    return false;
  };
  std::uint32_t state = 1;
  const auto random = [&](std::uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
  };
  for (int round = 0; round < 4000; ++round) {
    if (random(5) < 3) {
      const std::size_t bytes = 8 * (1 + random(40));
      const bool possible = first_free(bytes);
      const std::ptrdiff_t begin = take(bytes);
      ASSERT_EQ(begin >= 0, possible) << "round " << round;
      if (begin < 0) continue;
      for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(owner[begin + i]++, 0) << "round " << round;
      taken.emplace_back(begin, bytes);
    } else if (!taken.empty()) {
      std::swap(taken[random(static_cast<std::uint32_t>(taken.size()))], taken.back());
      const auto [begin, bytes] = taken.back();
      taken.pop_back();
      for (std::size_t i = 0; i < bytes; ++i) --owner[begin + i];
      give_back(begin, bytes);
    }
  }
  for (const auto& [begin, bytes] : taken) give_back(begin, bytes);
  EXPECT_EQ(chunks.remove_unused().size(), 4u);
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

TEST(HugePageBlocks, StandSideBySideFromTheBeginningOfAPageOn) {
  HugePageBlocks blocks;
  constexpr std::size_t kSize = HugePageBlocks::kSmallest + 64;
  auto* const first = static_cast<std::byte*>(blocks.allocate(kSize));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first) % HugePageBlocks::kPage, 0u);
  EXPECT_EQ(blocks.allocate(HugePageBlocks::kPage), first + kSize);
  EXPECT_EQ(blocks.allocate(kSize), first + kSize + HugePageBlocks::kPage);
}

TEST(HugePageBlocks, KeepWhatIsWrittenAndGoBackInAnyOrder) {
  HugePageBlocks blocks;
  constexpr std::size_t kSize = HugePageBlocks::kPage / 4 * 3;
  std::vector<unsigned char*> taken;  // of three regions
  for (int i = 0; i < 25; ++i) {
    taken.push_back(static_cast<unsigned char*>(blocks.allocate(kSize)));
    std::memset(taken.back(), i, kSize);
  }
  for (int i = 0; i < 25; ++i) {
    EXPECT_EQ(std::count(taken[i], taken[i] + kSize, static_cast<unsigned char>(i)), std::ptrdiff_t{kSize});
  }
  for (int i = 0; i < 25; ++i) EXPECT_TRUE(blocks.release(taken[i * 7 % 25]));
  EXPECT_FALSE(blocks.release(taken[0])) << "its region went back";
  EXPECT_NE(blocks.allocate(kSize), nullptr);
  int elsewhere = 0;
  EXPECT_FALSE(blocks.release(&elsewhere));
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
