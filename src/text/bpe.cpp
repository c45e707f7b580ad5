#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "text/byte_level.h"

namespace quaver {
namespace {

constexpr std::uint64_t kNoKey = ~std::uint64_t{0};
constexpr std::uint64_t kSpread = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio: Knuth's multiplicative hash
constexpr int kCacheBits = 16;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

/// std::*_heap keep the largest on top; the first merge is that of the lowest rank, of equal ones the
/// leftmost.
bool later(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

std::array<std::int32_t, 256> find_byte_tokens(const std::vector<std::string>& tokens) {
  std::array<std::int32_t, 256> found;
  found.fill(-1);
  for (std::size_t id = tokens.size(); id-- > 0;) {
    if (tokens[id].size() == 1)
      found[static_cast<unsigned char>(tokens[id][0])] = static_cast<std::int32_t>(id);
  }
  for (std::size_t byte = 0; byte < found.size(); ++byte) {
    if (found[byte] < 0)
      fail(ErrorKind::data, "the vocabulary has no token for byte {:#04x} ({}); expected one for each byte",
           byte, to_byte_level(std::string(1, static_cast<char>(byte))));
  }
  return found;
}

}  // namespace

PairTable::PairTable(std::size_t pairs) {
  const std::size_t size = std::bit_ceil(std::max<std::size_t>(16, 2 * pairs));
  slots_.assign(size, {kNoKey, {0, 0}});
  shift_ = 64 - std::countr_zero(size);
}

std::size_t PairTable::slot_of(std::uint64_t key) const {
  std::size_t slot = (key * kSpread) >> shift_;
  while (slots_[slot].key != key && slots_[slot].key != kNoKey) slot = (slot + 1) & (slots_.size() - 1);
  return slot;
}

void PairTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  slots_[slot_of(pair_key(left, right))] = {pair_key(left, right), merge};
}

const PairTable::Merge* PairTable::find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(pair_key(left, right))];
  return slot.key == kNoKey ? nullptr : &slot.merge;
}

BpeModel::BpeModel(const std::vector<std::string>& tokens, const std::vector<BpeMerge>& merges,
                   bool whole_pieces)
    : byte_tokens_(find_byte_tokens(tokens)), merges_(merges.size()) {
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right, result] = merges[i];
    const auto bytes = [&](std::int32_t id) -> const std::string& {
      return tokens.at(static_cast<std::size_t>(id));
    };
    if (bytes(left).empty() || bytes(right).empty() || bytes(result) != bytes(left) + bytes(right))
      fail(ErrorKind::data, "merge {}: {} is not {} followed by {}", i, to_byte_level(bytes(result)),
           to_byte_level(bytes(left)), to_byte_level(bytes(right)));
    merges_.set(left, right, {static_cast<std::uint32_t>(i), result});
  }
  if (!whole_pieces) return;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) pieces_.emplace(tokens[id], static_cast<std::int32_t>(id));
  }
}

void BpeModel::propose(std::int32_t left, Scratch& scratch) const {
  const auto& symbol = scratch.symbols[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return;
  const std::int32_t right_token = scratch.symbols[static_cast<std::size_t>(symbol.next)].token;
  const PairTable::Merge* merge = merges_.find(symbol.token, right_token);
  if (!merge) return;
  scratch.queue.push_back({merge->rank, left, symbol.token, right_token, merge->token});
  std::push_heap(scratch.queue.begin(), scratch.queue.end(), later);
}

void BpeModel::encode(std::string_view piece, std::vector<std::int32_t>& tokens, Scratch& scratch) const {
  if (!pieces_.empty()) {
    const auto whole = pieces_.find(piece);
    if (whole != pieces_.end()) {
      tokens.push_back(whole->second);
      return;
    }
  }
  auto& symbols = scratch.symbols;
  const auto count = static_cast<std::int32_t>(piece.size());
  symbols.clear();
  scratch.queue.clear();
  for (std::int32_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(piece[static_cast<std::size_t>(i)]);
    symbols.push_back({byte_tokens_[byte], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (std::int32_t i = 0; i < count; ++i) propose(i, scratch);
  while (!scratch.queue.empty()) {
    const Scratch::Candidate merge = scratch.queue.front();
    std::pop_heap(scratch.queue.begin(), scratch.queue.end(), later);
    scratch.queue.pop_back();
    auto& left = symbols[static_cast<std::size_t>(merge.at)];
    // Candidates whose symbols have changed since are passed over. A symbol merged into its left neighbour
    // has token -1.
    if (left.token != merge.left || left.next < 0) continue;
    auto& right = symbols[static_cast<std::size_t>(left.next)];
    if (right.token != merge.right) continue;
    left.token = merge.token;
    right.token = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = merge.at;
    if (left.previous >= 0) propose(left.previous, scratch);
    propose(merge.at, scratch);
  }
  for (std::int32_t i = 0; i >= 0 && i < count; i = symbols[static_cast<std::size_t>(i)].next)
    tokens.push_back(symbols[static_cast<std::size_t>(i)].token);
}

PieceCache::PieceCache() : entries_(std::size_t{1} << kCacheBits) {}

PieceCache::Key PieceCache::key_of(std::string_view piece) {
  Key key{0, 0};
  std::memcpy(&key.low, piece.data(), std::min<std::size_t>(8, piece.size()));
  if (piece.size() > 8) std::memcpy(&key.high, piece.data() + 8, piece.size() - 8);
  key.high |= static_cast<std::uint64_t>(piece.size()) << 56;
  return key;
}

std::size_t PieceCache::slot_of(const Key& key) {
  return ((key.low ^ std::rotl(key.high, 23) * kSpread) * kSpread) >> (64 - kCacheBits);
}

}  // namespace quaver
