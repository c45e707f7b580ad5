#include "ops/memory_chunks.h"

#include <iterator>

namespace quaver {

void MemoryChunks::add_hole(std::byte* begin, std::size_t bytes) {
  holes_.emplace(begin, bytes);
  by_size_.emplace(bytes, begin);
}

std::size_t MemoryChunks::remove_hole(std::byte* begin) {
  const auto hole = holes_.find(begin);
  const std::size_t bytes = hole->second;
  by_size_.erase({bytes, begin});
  holes_.erase(hole);
  return bytes;
}

void MemoryChunks::add(void* chunk, std::size_t bytes) {
  auto* const begin = static_cast<std::byte*>(chunk);
  chunks_.emplace(begin, bytes);
  add_hole(begin, bytes);
}

void* MemoryChunks::take(std::size_t bytes) {
  const auto fit = by_size_.lower_bound({bytes, nullptr});
  if (fit == by_size_.end()) return nullptr;
  std::byte* const begin = fit->second;
  const std::size_t all = remove_hole(begin);
  if (all > bytes) add_hole(begin + bytes, all - bytes);
  return begin;
}

void MemoryChunks::give_back(void* block, std::size_t bytes) {
  auto* begin = static_cast<std::byte*>(block);
  // Neighbours of another chunk stay apart: a chunk goes back as it came.
  const auto next = holes_.find(begin + bytes);
  if (next != holes_.end() && !chunks_.contains(next->first)) bytes += remove_hole(next->first);
  const auto after = holes_.lower_bound(begin);
  if (after != holes_.begin() && !chunks_.contains(begin)) {
    const auto [previous, size] = *std::prev(after);
    if (previous + size == begin) {
      remove_hole(previous);
      begin = previous;
      bytes += size;
    }
  }
  add_hole(begin, bytes);
}

std::vector<MemoryChunks::Chunk> MemoryChunks::remove_unused() {
  std::vector<Chunk> unused;
  for (auto chunk = chunks_.begin(); chunk != chunks_.end();) {
    const auto hole = holes_.find(chunk->first);
    if (hole == holes_.end() || hole->second != chunk->second) {
      ++chunk;
      continue;
    }
    unused.emplace_back(*chunk);
    remove_hole(chunk->first);
    chunk = chunks_.erase(chunk);
  }
  return unused;
}

}  // namespace quaver
