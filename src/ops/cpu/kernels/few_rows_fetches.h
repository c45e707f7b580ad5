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
/// The tile that follows is fetched in the order of its addresses, column after column, which memory serves faster than a line of
/// each column in turn. A tile that none came before fetches its own lines besides, a few of each column in turn.
class Fetches {
 public:
  /// Lines that are fetched while a word is multiplied, one by one: all at once, the memory would wait for the arithmetic.
  static constexpr int kOfWord = kFewRowsVectors;
  /// Lines of each of its own columns that a tile fetches in a turn, the first before it multiplies.
  static constexpr std::int64_t kOwnLines = 4;

  Fetches(const FewRowsTile& tile, int element_bytes)
      : stride_(tile.columns.stride * element_bytes),
        lines_(lines_of(tile.columns.contraction * element_bytes)),
        own_(column(tile, tile.begin)),
        own_columns_(tile.fetched ? 0 : columns_from(tile, tile.begin)),
        pieces_(columns_from(tile, tile.next)),
        piece_lines_(lines_) {
    if (stride_ < (lines_ + 1) * kLineBytes) {  // no whole line between columns
      piece_lines_ = lines_of(pieces_ * stride_);
      pieces_ = lower(pieces_, 1);
    }
    next_ = end_ = column(tile, tile.next);
    if (pieces_ > 0) end_ += piece_lines_ * kLineBytes;
    for (std::int64_t c = 0; c < own_columns_; ++c) fetch_own(0, c);
  }

  /// Before word w of `line` is multiplied.
  [[gnu::always_inline]] void begin_word(std::int64_t line, std::int64_t w) {
    chosen_ = next_;
    if (__builtin_expect(end_ - next_ >= kOfWord * kLineBytes, 1)) {
      next_ += kOfWord * kLineBytes;
    } else {
      fetch_ends();
      chosen_ = own_;  // there already
    }
    if (__builtin_expect(own_columns_ > 0, 0))
      fetch_own(line / kOwnLines + 1, line % kOwnLines * kLineWords + w);
  }
  /// Between its parts, i < kOfWord.
  [[gnu::always_inline]] void fetch(int i) const { fetch_line(chosen_ + i * kLineBytes); }

 private:
  static std::int64_t lines_of(std::int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes; }
  static std::int64_t columns_from(const FewRowsTile& tile, std::int64_t begin) {
    const std::int64_t left = tile.columns.lanes - begin;
    return left <= 0 ? 0 : lower(left, kFewRowsColumns);
  }
  const std::uint8_t* column(const FewRowsTile& tile, std::int64_t index) const {
    const auto* data = static_cast<const std::uint8_t*>(tile.columns.data);
    return index < tile.columns.lanes ? data + index * stride_ : data;
  }
  /// Where a piece ends.
  [[gnu::noinline]] void fetch_ends() {
    for (int i = 0; i < kOfWord; ++i) {
      if (next_ >= end_) {
        if (pieces_ <= 1) return;
        --pieces_;
        next_ += stride_ - piece_lines_ * kLineBytes;
        end_ += stride_;
      }
      fetch_line(next_);
      next_ += kLineBytes;
    }
  }
  /// Of column c, the kOwnLines lines of a turn.
  [[gnu::noinline]] void fetch_own(std::int64_t turn, std::int64_t c) const {
    if (c >= own_columns_) return;
    const std::int64_t end = lower(lines_, (turn + 1) * kOwnLines);
    for (std::int64_t line = turn * kOwnLines; line < end; ++line)
      fetch_line(own_ + c * stride_ + line * kLineBytes);
  }

  /// Not beside next_: g++ would make a vector of both for every word.
  const std::uint8_t* chosen_ = nullptr;
  std::int64_t stride_, lines_;
  const std::uint8_t* own_;
  std::int64_t own_columns_;           ///< 0: they were fetched by the tile before
  std::int64_t pieces_, piece_lines_;  ///< of the next tile, without gaps
  const std::uint8_t *next_, *end_;    ///< of the first that is left
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
