#include "ops/cpu/shared_tiles.h"

namespace quaver::cpu {
namespace {

constexpr std::int64_t kTeam = 2;  ///< threads of a run, one at each end

std::uint64_t pack(const Range& range) {
  return static_cast<std::uint64_t>(range.end) << 32 | static_cast<std::uint64_t>(range.begin);
}

Range unpack(std::uint64_t word) {
  return {static_cast<std::int64_t>(word & 0xFFFFFFFF), static_cast<std::int64_t>(word >> 32)};
}

}  // namespace

Range SharedTiles::run_of(std::int64_t tiles, int threads, std::int64_t run) {
  const auto begin = [&](std::int64_t of) {
    return tiles * std::min<std::int64_t>(threads, of * kTeam) / threads;
  };
  return {begin(run), begin(run + 1)};
}

SharedTiles::SharedTiles(std::int64_t tiles, int threads)
    : threads_(threads), runs_(static_cast<std::size_t>(ceil_div(threads, kTeam))) {
  std::int64_t index = 0;
  for (Run& run : runs_) run.left.store(pack(run_of(tiles, threads, index++)), std::memory_order_relaxed);
}

std::optional<std::int64_t> SharedTiles::first(std::int64_t tiles, int threads, int thread) {
  const Range run = run_of(tiles, threads, thread / kTeam);
  if (run.size() == 0) return {};
  return thread % kTeam == 0 ? run.begin : run.end - 1;
}

std::optional<SharedTiles::Turn> SharedTiles::take(int thread) {
  const auto runs = static_cast<std::int64_t>(runs_.size());
  for (std::int64_t i = 0; i < runs; ++i) {
    const std::int64_t run = (thread / kTeam + i) % runs;
    const std::int64_t company = std::min<std::int64_t>(kTeam, threads_ - run * kTeam);
    if (auto turn = take_from(runs_[static_cast<std::size_t>(run)], thread % kTeam != 0, company))
      return turn;
  }
  return {};
}

std::optional<SharedTiles::Turn> SharedTiles::take_from(Run& run, bool from_end, std::int64_t company) {
  std::uint64_t word = run.left.load(std::memory_order_relaxed);
  for (;;) {
    Range left = unpack(word);
    if (left.size() == 0) return {};
    Turn turn{from_end ? --left.end : left.begin++, {}};
    if (!run.left.compare_exchange_weak(word, pack(left), std::memory_order_relaxed)) continue;
    // The last one goes to the thread that is in the middle of its tile, not to the one that begins.
    if (left.size() >= company) turn.next = from_end ? left.end - 1 : left.begin;
    return turn;
  }
}

}  // namespace quaver::cpu
