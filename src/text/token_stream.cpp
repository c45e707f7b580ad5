#include "text/token_stream.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"

namespace quaver {
namespace {

std::int32_t token_at(const std::byte* data, int width) {
  std::uint32_t token = 0;
  std::memcpy(&token, data, static_cast<std::size_t>(width));
  return static_cast<std::int32_t>(token);
}

}  // namespace

void TokenStream::append(const MappedFile& file, std::int64_t offset, std::int64_t count, int width) {
  require(
      offset >= 0 && count >= 0 && offset + count * width <= static_cast<std::int64_t>(file.bytes().size()),
      "tokens: {} of {} bytes at {} lie outside a file of {} bytes", count, width, offset,
      file.bytes().size());
  // Segments of one file come one after another: it is kept once.
  if (files_.empty() || files_.back().bytes().data() != file.bytes().data()) files_.push_back(file);
  append({file.bytes().data() + offset, count, width});
}

void TokenStream::append(const Segment& segment) {
  if (segment.count == 0) return;
  begins_.push_back(size());
  segments_.push_back(segment);
}

void TokenStream::read(std::int64_t begin, std::span<std::int32_t> destination) const {
  const auto count = static_cast<std::int64_t>(destination.size());
  require(begin >= 0 && begin + count <= size(), "tokens: [{}, {}) of {}", begin, begin + count, size());
  auto index =
      static_cast<std::size_t>(std::upper_bound(begins_.begin(), begins_.end(), begin) - begins_.begin());
  for (std::size_t done = 0; done < destination.size(); ++index) {
    const Segment& segment = segments_[index - 1];
    const std::int64_t from = begin + static_cast<std::int64_t>(done) - begins_[index - 1];
    const auto here =
        std::min<std::size_t>(destination.size() - done, static_cast<std::size_t>(segment.count - from));
    const std::byte* data = segment.data + from * segment.width;
    for (std::size_t i = 0; i < here; ++i, data += segment.width)
      destination[done + i] = token_at(data, segment.width);
    done += here;
  }
}

std::uint32_t TokenStream::fingerprint() const {
  constexpr std::int64_t kPlaces = 1024, kLength = 256;
  const std::array<std::int64_t, 2> sizes = {size(), segments()};
  std::uint32_t crc = crc32c(std::as_bytes(std::span(sizes)));
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(std::min(size(), kLength)));
  for (std::int64_t place = 0; place < kPlaces; ++place) {
    const auto length = static_cast<std::int64_t>(tokens.size());
    // Shares of the stream, so that its length times the place cannot overflow.
    const double share = static_cast<double>(place) / (kPlaces - 1);
    read(static_cast<std::int64_t>(share * static_cast<double>(size() - length)), tokens);
    crc = crc32c(std::as_bytes(std::span(tokens)), crc);
  }
  return crc;
}

TokenStream TokenStream::reordered(std::span<const std::int64_t> order) const {
  TokenStream result;
  result.files_ = files_;
  for (const std::int64_t index : order) result.append(segments_.at(static_cast<std::size_t>(index)));
  return result;
}

TokenStream TokenStream::slice(std::int64_t begin, std::int64_t end) const {
  TokenStream result;
  result.files_ = files_;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    const std::int64_t first = std::max(begin, begins_[i]),
                       last = std::min(end, begins_[i] + segments_[i].count);
    if (first >= last) continue;
    const Segment& segment = segments_[i];
    result.append({segment.data + (first - begins_[i]) * segment.width, last - first, segment.width});
  }
  return result;
}

}  // namespace quaver
