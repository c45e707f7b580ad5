/// Large pieces of memory, from which blocks of any size are cut, and into which freed ones grow together again.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace quaver {

/// Best fit: the smallest hole that is large enough, of equals the lowest. Where the holes are depends only on what is
/// handed out, not on the order in which it came and went, so a repeated sequence of requests gets the same addresses
/// again. Not thread-safe.
class MemoryChunks {
 public:
  using Chunk = std::pair<std::byte*, std::size_t>;

  void add(void* chunk, std::size_t bytes);
  /// Null if no hole is large enough. Sizes are multiples of the alignment that addresses shall have.
  void* take(std::size_t bytes);
  void give_back(void* block, std::size_t bytes);
  /// Forgets the chunks that are one hole, and returns them.
  std::vector<Chunk> remove_unused();

 private:
  void add_hole(std::byte* begin, std::size_t bytes);
  std::size_t remove_hole(std::byte* begin);

  std::map<std::byte*, std::size_t> chunks_, holes_;
  std::set<std::pair<std::size_t, std::byte*>> by_size_;  // the holes again
};

}  // namespace quaver
