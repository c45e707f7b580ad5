/// Counter-based random numbers: a pure function of a key and a counter, so that no order of evaluation
/// matters.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace quaver {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four words for a
/// counter.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

/// A stable 64-bit hash of bytes (FNV-1a followed by an avalanche step): names to random streams, documents
/// to splits.
std::uint64_t stable_hash(std::string_view bytes);

/// Random numbers keyed by a seed and a stream, addressed by an index. Two equal (seed, stream, index) give
/// equal values.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}

  std::uint64_t bits(std::uint64_t index) const;
  /// Uniform in [0, 1), 24 bits.
  float uniform(std::uint64_t index) const;
  /// Uniform in [0, bound), bound >= 1, without modulo bias beyond 2^-64 * bound.
  std::uint64_t below(std::uint64_t index, std::uint64_t bound) const;
  /// Standard normal (Box-Muller in double, rounded once to FP32).
  float normal(std::uint64_t index) const;

 private:
  std::array<std::uint32_t, 4> words(std::uint64_t index) const;
  std::uint64_t seed_;
  std::uint64_t stream_;
};

}  // namespace quaver
