#include "ops/memory_chunks.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace quaver {
namespace {

/// The first piece at `address` or after it. std::less: chunks are no parts of one array.
template <typename Pieces>
auto at_or_after(Pieces& pieces, const std::byte* address) {
  return std::lower_bound(pieces.begin(), pieces.end(), address,
                          [](const MemoryChunks::Piece& piece, const std::byte* wanted) {
                            return std::less<>()(piece.begin, wanted);
                          });
}

}  // namespace

bool MemoryChunks::begins_chunk(const std::byte* address) const {
  const auto chunk = at_or_after(chunks_, address);
  return chunk != chunks_.end() && chunk->begin == address;
}

void MemoryChunks::add(void* chunk, std::size_t bytes) {
  const Piece piece{static_cast<std::byte*>(chunk), bytes};
  chunks_.insert(at_or_after(chunks_, piece.begin), piece);
  holes_.insert(at_or_after(holes_, piece.begin), piece);
}

void* MemoryChunks::take(std::size_t bytes) {
  auto fit = holes_.end();
  for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
    if (hole->bytes >= bytes && (fit == holes_.end() || hole->bytes < fit->bytes)) fit = hole;
  }
  if (fit == holes_.end()) return nullptr;
  std::byte* const begin = fit->begin;
  if (fit->bytes == bytes) {
    holes_.erase(fit);
  } else {
    *fit = {begin + bytes, fit->bytes - bytes};
  }
  return begin;
}

void MemoryChunks::give_back(void* block, std::size_t bytes) {
  const Piece piece{static_cast<std::byte*>(block), bytes};
  const auto next = at_or_after(holes_, piece.begin);
  const auto previous = next == holes_.begin() ? holes_.end() : std::prev(next);
  // Neighbours of another chunk stay apart: a chunk goes back as it came.
  const bool joins_next =
      next != holes_.end() && piece.begin + bytes == next->begin && !begins_chunk(next->begin);
  const bool joins_previous = previous != holes_.end() && previous->begin + previous->bytes == piece.begin &&
                              !begins_chunk(piece.begin);
  if (joins_previous) {
    previous->bytes += bytes;
    if (!joins_next) return;
    previous->bytes += next->bytes;
    holes_.erase(next);
  } else if (joins_next) {
    *next = {piece.begin, bytes + next->bytes};
  } else {
    holes_.insert(next, piece);
  }
}

std::vector<MemoryChunks::Piece> MemoryChunks::remove_unused() {
  std::vector<Piece> unused;
  std::erase_if(chunks_, [&](const Piece& chunk) {
    const auto hole = at_or_after(holes_, chunk.begin);
    if (hole == holes_.end() || *hole != chunk) return false;
    unused.push_back(chunk);
    holes_.erase(hole);
    return true;
  });
  return unused;
}

}  // namespace quaver
