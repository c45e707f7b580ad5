/// What a product of few rows fetches ahead of its turn (AVX-512 with BF16 and VBMI).
///
/// For kernel files only: everything is in an anonymous namespace of the level.
#pragma once

#include "ops/cpu/kernels/few_rows_words.h"
#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/kernels/pack.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Into the outer private cache. As inline assembly because g++ takes a function of prefetches alone for one without effects.
[[gnu::always_inline]] inline void fetch_line(const std::uint8_t* line) {
  asm volatile("prefetcht1 %0" : : "m"(*line));
}

/// What a tile has on its way into the outer private cache while it multiplies. (Into the innermost one it would not fit beside
/// the line in work.)
///
/// The tile that follows is fetched as four parts, each in the order of its addresses, column after column, a line of each part in
/// turn: memory serves that faster than a line of each column in turn, and, where arithmetic takes nearly as long as memory, faster
/// than one part, which waits at every page. Columns that none before the tile has fetched it fetches itself besides, a few lines of each
/// in turn.
class Fetches {
 public:
  /// Lines that are fetched while a word is multiplied, one by one: all at once, the memory would wait for the arithmetic.
  static constexpr int kParts = kFewRowsVectors;
  /// Lines of each of its own columns that a tile fetches in a turn, the first before it multiplies.
  static constexpr std::int64_t kOwnLines = 4;

  Fetches(const FewRowsTile& tile, int element_bytes)
      : own_stride_(tile.columns.stride * element_bytes),
        own_lines_(lines_of(tile.columns.contraction * element_bytes)),
        own_(static_cast<const std::uint8_t*>(tile.columns.data) + tile.begin * own_stride_),
        own_begin_(tile.fetched),
        own_end_(tile.fetched < tile.end - tile.begin ? tile.end - tile.begin : 0),
        stride_(tile.next.stride),
        pieces_((tile.next.count + kParts - 1) / kParts),
        piece_lines_(lines_of(tile.next.bytes)),
        part_(pieces_ * stride_) {
    if (stride_ < (piece_lines_ + 1) * kLineBytes) {  // no whole line between columns
      piece_lines_ = lines_of(part_);
      pieces_ = lower(pieces_, 1);
    }
    next_ = end_ = static_cast<const std::uint8_t*>(tile.next.first);
    if (pieces_ > 0) end_ += piece_lines_ * kLineBytes;
    for (std::int64_t c = own_begin_; c < own_end_; ++c) fetch_own(0, c);
  }

  /// Before word w of `line` is multiplied.
  [[gnu::always_inline]] void begin_word(std::int64_t line, std::int64_t w) {
    if (__builtin_expect(next_ == end_, 0)) begin_piece();
    chosen_ = next_;
    next_ += kLineBytes;
    if (__builtin_expect(own_end_ > 0, 0)) fetch_own(line / kOwnLines + 1, line % kOwnLines * kLineWords + w);
  }
  /// Between its vectors, i < kParts.
  [[gnu::always_inline]] void fetch(int i) const { fetch_line(chosen_ + i * part_); }

 private:
  static std::int64_t lines_of(std::int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes; }

  [[gnu::noinline]] void begin_piece() {
    if (pieces_ > 1) {
      --pieces_;
      next_ += stride_ - piece_lines_ * kLineBytes;
      end_ += stride_;
    } else {  // all are fetched: what is there already, again and again
      next_ = own_;
      end_ = own_ + kLineBytes;
      part_ = 0;
    }
  }
  /// Of column c, the kOwnLines lines of a turn.
  [[gnu::noinline]] void fetch_own(std::int64_t turn, std::int64_t c) const {
    if (c < own_begin_ || c >= own_end_) return;
    const std::int64_t end = lower(own_lines_, (turn + 1) * kOwnLines);
    for (std::int64_t line = turn * kOwnLines; line < end; ++line)
      fetch_line(own_ + c * own_stride_ + line * kLineBytes);
  }

  /// Not beside next_: g++ would make a vector of both for every word.
  const std::uint8_t* chosen_ = nullptr;
  std::int64_t own_stride_, own_lines_;
  const std::uint8_t* own_;
  std::int64_t own_begin_, own_end_;  ///< own_end_ 0: all of the tile's columns were fetched before
  std::int64_t stride_;
  std::int64_t pieces_, piece_lines_;  ///< left of the next tile's first part, without gaps
  std::int64_t part_;                  ///< from a part to the next one
  const std::uint8_t *next_, *end_;    ///< of the first piece that is left
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
