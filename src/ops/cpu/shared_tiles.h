/// Tiles that threads share so that they end together, and so that a thread knows its next tile before it takes it.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "ops/cpu/ranges.h"

namespace quaver::cpu {

/// Two threads share a run of neighbouring tiles, which they take from its two ends: until they meet, the next one is known. Whoever
/// finds the run empty helps with the others, so that one thread alone takes all tiles too.
class SharedTiles {
 public:
  struct Turn {
    std::int64_t tile;
    std::optional<std::int64_t> next;  ///< which the thread takes then, unless it was helping or is overtaken
  };

  /// Fewer than 2^32 tiles.
  SharedTiles(std::int64_t tiles, int threads);

  /// The thread's next tile. Nothing: all are taken.
  std::optional<Turn> take(int thread);

  /// What `thread` takes first, of as many tiles.
  static std::optional<std::int64_t> first(std::int64_t tiles, int threads, int thread);

 private:
  /// The tiles left of a run, in one word; runs do not share cache lines.
  struct alignas(64) Run {
    std::atomic<std::uint64_t> left;
  };

  static Range run_of(std::int64_t tiles, int threads, std::int64_t run);
  std::optional<Turn> take_from(Run& run, bool from_end, std::int64_t company);

  int threads_;
  std::vector<Run> runs_;
};

}  // namespace quaver::cpu
