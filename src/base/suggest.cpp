#include "base/suggest.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace quaver {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  std::iota(previous.begin(), previous.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] != b[j - 1])});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(previous);
    previous.swap(row);
  }
  return previous[b.size()];
}

std::string nearest_name(std::string_view word, std::span<const std::string> candidates) {
  std::string best;
  // A third of the letters may be wrong: more is another word.
  std::size_t limit = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const std::size_t lengths[] = {word.size(), candidate.size()};
    if (std::max(lengths[0], lengths[1]) - std::min(lengths[0], lengths[1]) >= limit)
      continue;  // so many edits at least
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < limit) limit = distance, best = candidate;
  }
  return best;
}

}  // namespace quaver
