/// Ranges of rows or columns, and how they are cut.
#pragma once

#include <algorithm>
#include <cstdint>

namespace quaver::cpu {

/// [begin, end).
struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Number `index` of the blocks of `block` that a range is cut into; the last may be shorter.
inline Range block_of(const Range& range, std::int64_t index, std::int64_t block) {
  const std::int64_t begin = range.begin + index * block;
  return {begin, std::min(range.end, begin + block)};
}

}  // namespace quaver::cpu
