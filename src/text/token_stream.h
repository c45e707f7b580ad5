/// A long sequence of tokens, in memory that belongs to mapped files.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mapped_file.h"

namespace quaver {

/// Segments of tokens (documents, or the shards of a data set), one after another.
class TokenStream {
 public:
  /// Appends `count` tokens of `width` bytes (2 or 4, without sign), `offset` bytes into a file.
  void append(const MappedFile& file, std::int64_t offset, std::int64_t count, int width);

  std::int64_t size() const { return begins_.empty() ? 0 : begins_.back() + segments_.back().count; }
  std::int64_t segments() const { return static_cast<std::int64_t>(segments_.size()); }

  /// Fills `destination` with the tokens from `begin` on, which must be there. A token of 4 bytes that is no
  /// id becomes a negative number.
  void read(std::int64_t begin, std::span<std::int32_t> destination) const;

  /// A checksum of the number of tokens and segments and of tokens at 1024 places: other data has another one.
  std::uint32_t fingerprint() const;

  /// The same segments in another order.
  TokenStream reordered(std::span<const std::int64_t> order) const;
  /// The tokens [begin, end).
  TokenStream slice(std::int64_t begin, std::int64_t end) const;

 private:
  struct Segment {
    const std::byte* data;
    std::int64_t count;
    int width;
  };
  void append(const Segment& segment);

  std::vector<Segment> segments_;
  std::vector<std::int64_t> begins_;
  std::vector<MappedFile> files_;
};

}  // namespace quaver
