/// Large pieces of memory, from which blocks of any size are cut, and into which freed ones grow together again.
#pragma once

#include <cstddef>
#include <vector>

namespace quaver {

/// Best fit: the smallest hole that is large enough, of equals the lowest. Where the holes are depends only on what is
/// handed out, not on the order in which it came and went, so a repeated sequence of requests gets the same addresses
/// again. Not thread-safe.
class MemoryChunks {
 public:
  struct Piece {
    std::byte* begin;
    std::size_t bytes;
    bool operator==(const Piece&) const = default;
  };

  void add(void* chunk, std::size_t bytes);
  /// Null if no hole is large enough. Sizes are multiples of the alignment that addresses shall have.
  void* take(std::size_t bytes);
  void give_back(void* block, std::size_t bytes);
  /// Forgets the chunks that are one hole, and returns them.
  std::vector<Piece> remove_unused();

 private:
  bool begins_chunk(const std::byte* address) const;

  // By address. Holes are some dozens: to look at all of them takes less than to keep them by size as well.
  std::vector<Piece> chunks_, holes_;
};

}  // namespace quaver
