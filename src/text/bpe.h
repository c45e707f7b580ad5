/// Byte-pair encoding: how one piece of text becomes tokens.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace quaver {

/// Two neighbouring tokens and the token they become.
struct BpeMerge {
  std::int32_t left = 0, right = 0, result = 0;
};

/// A map from pairs of tokens to merges: open addressing, since it is asked for every pair of bytes of a word
/// that no cache knows.
class PairTable {
 public:
  struct Merge {
    std::uint32_t rank;  ///< lower ones are made first
    std::int32_t token;
  };
  explicit PairTable(std::size_t pairs);
  /// Adds a pair, or replaces what was known of it. At most as many pairs as the table was made for.
  void set(std::int32_t left, std::int32_t right, Merge merge);
  /// Null when there is none.
  const Merge* find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t key;
    Merge merge;
  };
  std::size_t slot_of(std::uint64_t key) const;
  std::vector<Slot> slots_;
  int shift_;
};

class BpeModel {
 public:
  /// `tokens`: the bytes of each id, empty for ids that bytes cannot become. `merges` in the order in which
  /// they are made, of equal ones from left to right; of a pair that stands there twice the last place counts,
  /// as in Python's `tokenizers`. With `whole_pieces` a piece that is a token becomes it
  /// whatever the merges say. Throws Error(data) when a byte has no token, or a merge does not make the
  /// concatenation of its parts.
  BpeModel(const std::vector<std::string>& tokens, const std::vector<BpeMerge>& merges, bool whole_pieces);

  std::int32_t byte_token(unsigned char byte) const { return byte_tokens_[byte]; }

  /// Memory for `encode` that is kept between calls.
  struct Scratch {
    struct Symbol {
      std::int32_t token, previous, next;  ///< neighbours by index, -1: none
    };
    struct Candidate {
      std::uint32_t rank;
      std::int32_t at, left, right, token;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };

  /// Appends the tokens of one piece. Takes n log n steps.
  void encode(std::string_view piece, std::vector<std::int32_t>& tokens, Scratch& scratch) const;

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  void propose(std::int32_t left, Scratch& scratch) const;

  std::array<std::int32_t, 256> byte_tokens_{};
  PairTable merges_;
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> pieces_;  // empty unless whole_pieces
};

/// Remembers the tokens of short pieces: words repeat. Of fixed size; a newer piece replaces an older one.
class PieceCache {
 public:
  static constexpr std::size_t kLongestPiece = 15, kMostTokens = 7;

  PieceCache();

  struct Key {
    std::uint64_t low, high;  ///< the bytes, padded with zeros, and their number in the last
  };
  static Key key_of(std::string_view piece);

  struct Entry {
    Key key{0, 0};
    std::int32_t tokens[kMostTokens];
    std::int32_t count = 0;
  };
  /// Where the piece is, or would be if its key is another.
  Entry& entry(const Key& key) { return entries_[slot_of(key)]; }

 private:
  static std::size_t slot_of(const Key& key);
  std::vector<Entry> entries_;
};

}  // namespace quaver
