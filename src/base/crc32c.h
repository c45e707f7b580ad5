/// CRC32C (Castagnoli; RFC 3720, appendix B.4): the checksum of checkpoints and of event files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace quaver {

/// The checksum of `bytes` behind whatever `crc` is the checksum of: crc32c(b, crc32c(a)) is that of a
/// followed by b. Uses the processor's instruction where there is one.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc = 0);

/// The same by tables: what other processors run, and what tests compare with.
std::uint32_t crc32c_portable(std::span<const std::byte> bytes, std::uint32_t crc = 0);

}  // namespace quaver
