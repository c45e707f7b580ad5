#include "text/bpe_trainer.h"

#include <algorithm>
#include <functional>
#include <map>
#include <queue>
#include <utility>

#include "base/check.h"
#include "text/byte_level.h"
#include "text/utf8.h"

namespace quaver {
namespace {

using Pair = std::pair<std::int32_t, std::int32_t>;

struct Word {
  std::vector<std::int32_t> tokens;
  std::int64_t count;
};

struct PairHash {
  std::size_t operator()(const Pair& pair) const {
    return std::hash<std::uint64_t>()(static_cast<std::uint64_t>(pair.first) << 32 |
                                      static_cast<std::uint32_t>(pair.second));
  }
};

/// How often a pair occurs, and in which words it may occur (it did when it was counted).
struct Occurrences {
  std::int64_t count = 0;
  std::vector<std::uint32_t> words;
};

struct Candidate {
  std::int64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

/// The state of training: words as tokens, and the pairs in them.
class Merger {
 public:
  explicit Merger(std::vector<Word> words) : words_(std::move(words)) {
    for (std::uint32_t i = 0; i < words_.size(); ++i) count(i, +1);
    for (const auto& [pair, occurrences] : pairs_) queue_.push({occurrences.count, pair});
    touched_.clear();
  }

  /// The most frequent pair; its count is below 2 when no pair occurs twice.
  Candidate next() {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const std::int64_t now = pairs_[top.pair].count;
      if (now == top.count) return top;
      if (now > 0) queue_.push({now, top.pair});
    }
    return {0, {}};
  }

  void merge(const Pair& pair, std::int32_t result) {
    std::vector<std::uint32_t> where = std::move(pairs_[pair].words);
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    for (const std::uint32_t word : where) {
      count(word, -1);
      replace(words_[word].tokens, pair, result);
      count(word, +1);
    }
    for (const Pair& changed : touched_) {
      const std::int64_t now = pairs_[changed].count;
      if (now > 0 && (changed.first == result || changed.second == result)) queue_.push({now, changed});
    }
    touched_.clear();
  }

 private:
  void count(std::uint32_t word, int sign) {
    const auto& [tokens, times] = words_[word];
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const Pair pair{tokens[i], tokens[i + 1]};
      Occurrences& occurrences = pairs_[pair];
      occurrences.count += sign * times;
      if (sign < 0) continue;
      if (occurrences.words.empty() || occurrences.words.back() != word) occurrences.words.push_back(word);
      touched_.push_back(pair);
    }
  }

  static void replace(std::vector<std::int32_t>& tokens, const Pair& pair, std::int32_t result) {
    std::size_t end = 0;
    for (std::size_t i = 0; i < tokens.size(); ++end) {
      const bool here = i + 1 < tokens.size() && tokens[i] == pair.first && tokens[i + 1] == pair.second;
      tokens[end] = here ? result : tokens[i];
      i += here ? 2 : 1;
    }
    tokens.resize(end);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, Occurrences, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> touched_;  // pairs whose count rose since the last merge
};

/// Ids of the bytes, behind `first`, in the order of their characters.
std::vector<std::int32_t> append_bytes(std::vector<std::string>& tokens) {
  std::vector<std::int32_t> order(256), ids(256);
  for (std::int32_t byte = 0; byte < 256; ++byte) order[static_cast<std::size_t>(byte)] = byte;
  const auto& alphabet = byte_level_alphabet();
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return alphabet[static_cast<std::size_t>(a)] < alphabet[static_cast<std::size_t>(b)];
  });
  for (const std::int32_t byte : order) {
    ids[static_cast<std::size_t>(byte)] = static_cast<std::int32_t>(tokens.size());
    tokens.emplace_back(1, static_cast<char>(byte));
  }
  return ids;
}

std::vector<AddedToken> number(const std::vector<std::string>& special) {
  std::vector<AddedToken> tokens;
  for (const std::string& text : special)
    tokens.push_back({static_cast<std::int32_t>(tokens.size()), text, true, false});
  return tokens;
}

}  // namespace

BpeTrainer::BpeTrainer(std::string pattern, bool nfc, std::vector<std::string> special)
    : pattern_(std::move(pattern)),
      nfc_(nfc),
      special_(number(special)),
      finder_(special_),
      splitter_({{pattern_, false}}) {
  std::sort(special.begin(), special.end());
  require(!special.empty() && !special.front().empty() &&
              std::adjacent_find(special.begin(), special.end()) == special.end(),
          "special tokens: expected at least one, none empty, none twice");
}

void BpeTrainer::add(std::string_view text) {
  const auto count = [&](std::string_view piece) {
    const auto known = counts_.find(piece);
    if (known == counts_.end()) {
      counts_.emplace(piece, 1);
    } else {
      ++known->second;
    }
  };
  while (!text.empty()) {
    const std::size_t valid = valid_utf8_prefix(text);
    finder_.split(
        text.substr(0, valid),
        [&](std::string_view part) {
          splitter_.split(nfc_ ? normalize_nfc(part) : std::string(part), count);
        },
        [](std::int32_t) {});
    text.remove_prefix(valid);
    while (!text.empty() && utf8_length(text) == 0) text.remove_prefix(1);
  }
}

BpeDefinition BpeTrainer::train(std::int64_t vocab) const {
  BpeDefinition definition;
  definition.stages = {{pattern_, false}};
  definition.nfc = nfc_;
  definition.added = special_;
  auto& tokens = definition.tokens;
  tokens.resize(special_.size());
  const std::vector<std::int32_t> byte_ids = append_bytes(tokens);
  require(vocab >= static_cast<std::int64_t>(tokens.size()) && vocab <= kMaxVocab,
          "vocabulary: expected a size in [{}, {}] ({} special tokens and 256 bytes are in it), found {}",
          tokens.size(), kMaxVocab, special_.size(), vocab);
  std::map<std::string, std::int32_t> known;
  for (std::size_t id = 0; id < tokens.size(); ++id) known.emplace(tokens[id], static_cast<std::int32_t>(id));
  std::vector<Word> words;
  for (const auto& [piece, count] : counts_) {
    Word& word = words.emplace_back(Word{{}, count});
    for (const char byte : piece) word.tokens.push_back(byte_ids[static_cast<unsigned char>(byte)]);
  }
  Merger merger(std::move(words));
  while (static_cast<std::int64_t>(tokens.size()) < vocab) {
    const auto [count, pair] = merger.next();
    if (count < 2) break;
    const auto& [left, right] = pair;
    std::string bytes = tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)];
    // Two pairs can make the same bytes: they then make the same token.
    const auto [place, is_new] = known.emplace(bytes, static_cast<std::int32_t>(tokens.size()));
    if (is_new) tokens.push_back(std::move(bytes));
    definition.merges.push_back({left, right, place->second});
    merger.merge(pair, place->second);
  }
  return definition;
}

}  // namespace quaver
