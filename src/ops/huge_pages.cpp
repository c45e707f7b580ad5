#include "ops/huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>

namespace quaver {

HugePageBlocks::~HugePageBlocks() {
  for (const Region& region : regions_) std::free(region.begin);
}

void* HugePageBlocks::allocate_pages(std::size_t size) {
  void* const pages = std::aligned_alloc(kPage, (size + kPage - 1) / kPage * kPage);
#ifdef __linux__
  if (pages) madvise(pages, size, MADV_HUGEPAGE);  // a hint: refusal does no harm
#endif
  return pages;
}

void* HugePageBlocks::allocate(std::size_t size) {
  if (regions_.empty() || kRegion - regions_.back().used < size) {
    auto* const begin = static_cast<std::byte*>(allocate_pages(kRegion));
    if (!begin) return nullptr;
    regions_.push_back({begin, 0, 0});
  }
  Region& region = regions_.back();
  std::byte* const block = region.begin + region.used;
  region.used += size;
  ++region.blocks;
  return block;
}

bool HugePageBlocks::release(void* block) {
  const auto* const address = static_cast<std::byte*>(block);
  const auto region = std::find_if(regions_.begin(), regions_.end(), [&](const Region& r) {
    return address >= r.begin && address < r.begin + kRegion;
  });
  if (region == regions_.end()) return false;
  if (--region->blocks == 0) {
    std::free(region->begin);
    regions_.erase(region);
  }
  return true;
}

}  // namespace quaver
