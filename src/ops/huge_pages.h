/// Host memory on huge pages, where the system has them.
#pragma once

#include <cstddef>
#include <vector>

namespace quaver {

/// Blocks cut one after the other from regions that stand on huge pages. A step for one token streams through all weights, and
/// with pages of 4 KiB the address translation costs it a tenth of its time; most weights of a small model are too
/// small for a huge page of their own. A region goes back to the system when its last block is released. Not thread-safe.
class HugePageBlocks {
 public:
  static constexpr std::size_t kPage = std::size_t{1} << 21, kRegion = 8 * kPage;
  /// Smaller blocks would gain nothing and keep regions alive.
  static constexpr std::size_t kSmallest = std::size_t{1} << 18;

  HugePageBlocks() = default;
  ~HugePageBlocks();
  HugePageBlocks(const HugePageBlocks&) = delete;
  HugePageBlocks& operator=(const HugePageBlocks&) = delete;

  /// 64-byte aligned; null if there is no memory left. `size`: kSmallest to kPage, a multiple of 64.
  void* allocate(std::size_t size);
  /// False if `block` is none of these.
  bool release(void* block);

  /// At least `size` bytes from the system, from the beginning of a page on; std::free takes them back.
  static void* allocate_pages(std::size_t size);

 private:
  struct Region {
    std::byte* begin;
    std::size_t used;  ///< bytes handed out since it was allocated
    int blocks;        ///< not yet released
  };
  std::vector<Region> regions_;  ///< blocks come from the last
};

}  // namespace quaver
