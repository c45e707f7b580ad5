#include "ops/arena.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <new>

#include "ops/huge_pages.h"

namespace quaver {
namespace {

constexpr std::size_t kAlignment = 64;
/// Smaller blocks of a source with chunks are not cut from them: holes between them would cost more than they hold.
constexpr std::size_t kSmallestCut = std::size_t{1} << 18;
constexpr std::size_t kCutAlignment = 512;

/// Small requests share sizes at cache-line steps, large ones at steps of 1/8 of their size, so that nearly
/// equal shapes share blocks.
std::size_t rounded(std::size_t bytes) {
  std::size_t step = kAlignment;
  while (step * 16 < bytes) step *= 2;
  return std::max(step, (bytes + step - 1) / step * step);
}

/// A step streams through all of its memory: with pages of 4 KiB the first touch and the address translation cost more
/// than the data.
void* allocate_block(HugePageBlocks& shared_pages, std::size_t size) {
  if (size >= HugePageBlocks::kPage) return HugePageBlocks::allocate_pages(size);
  if (size >= HugePageBlocks::kSmallest) return shared_pages.allocate(size);
  return std::aligned_alloc(kAlignment, size);
}

}  // namespace

MemorySource host_memory() {
  const auto shared_pages = std::make_shared<HugePageBlocks>();
  return {Device::host, 0, [shared_pages](std::size_t size) { return allocate_block(*shared_pages, size); },
          [shared_pages](void* block) {
            if (!shared_pages->release(block)) std::free(block);
          },
          [](std::size_t, const MemoryUse&) { throw std::bad_alloc(); }};
}

/// One allocation for storage and counts of references; a function of the storage's own would be a second.
class Arena::Block final : public Storage {
 public:
  Block(std::shared_ptr<Arena> arena, void* block, std::size_t size)
      : Storage(block, size, arena->source_.device), arena_(std::move(arena)) {}
  ~Block() override { arena_->release(data(), bytes()); }

 private:
  std::shared_ptr<Arena> arena_;
};

Arena::~Arena() {
  release_unused();
}

std::shared_ptr<Storage> Arena::allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  // More than any machine has, and more than rounding could represent.
  if (bytes > std::numeric_limits<std::size_t>::max() / 2) source_.fail(bytes, use_);
  const std::size_t exact = (bytes + kCutAlignment - 1) / kCutAlignment * kCutAlignment;
  const std::size_t size = is_cut(exact) ? exact : rounded(bytes);
  void* block = free_block(size);
  if (!block) block = fresh_block(size);
  use_.in_use += static_cast<std::int64_t>(size);
  use_.peak = std::max(use_.peak, use_.in_use);
  return std::make_shared<Block>(shared_from_this(), block, size);
}

bool Arena::is_cut(std::size_t size) const {
  return source_.chunk_bytes > 0 && size >= kSmallestCut;
}

/// Null if there is none.
void* Arena::free_block(std::size_t size) {
  if (is_cut(size)) return chunks_.take(size);
  auto& blocks = free_[size];
  if (blocks.empty()) return nullptr;
  if (source_.chunk_bytes > 0) std::pop_heap(blocks.begin(), blocks.end(), std::greater<>());
  void* const block = blocks.back();
  blocks.pop_back();
  return block;
}

void* Arena::from_source(std::size_t size) {
  void* const block = source_.allocate(size);
  if (block) use_.reserved += static_cast<std::int64_t>(size);
  return block;
}

void* Arena::fresh_block(std::size_t size) {
  const bool cut = is_cut(size);
  std::size_t wanted = cut ? std::max(size, source_.chunk_bytes) : size;
  void* block = from_source(wanted);
  if (!block && wanted > size) block = from_source(wanted = size);
  if (!block) {
    release_unused();
    block = from_source(wanted);
  }
  if (!block) source_.fail(size, use_);
  if (!cut) return block;
  chunks_.add(block, wanted);
  return chunks_.take(size);
}

void Arena::release_unused() {
  for (auto& [size, blocks] : free_) {
    for (void* block : blocks) source_.release(block);
    use_.reserved -= static_cast<std::int64_t>(size * blocks.size());
    blocks.clear();
  }
  for (const auto& [chunk, size] : chunks_.remove_unused()) {
    source_.release(chunk);
    use_.reserved -= static_cast<std::int64_t>(size);
  }
}

void Arena::release(void* block, std::size_t size) {
  const std::lock_guard lock(mutex_);
  if (is_cut(size)) {
    chunks_.give_back(block, size);
  } else {
    auto& blocks = free_[size];
    blocks.push_back(block);
    if (source_.chunk_bytes > 0) std::push_heap(blocks.begin(), blocks.end(), std::greater<>());
  }
  use_.in_use -= static_cast<std::int64_t>(size);
}

MemoryUse Arena::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

}  // namespace quaver
