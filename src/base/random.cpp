#include "base/random.h"

#include <cmath>
#include <numbers>

namespace quaver {
namespace {

struct Product {
  std::uint32_t high, low;
};

Product multiply(std::uint32_t a, std::uint32_t b) {
  const std::uint64_t product = static_cast<std::uint64_t>(a) * b;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const Product p0 = multiply(kMultiplier0, counter[0]);
    const Product p1 = multiply(kMultiplier1, counter[2]);
    counter = {p1.high ^ counter[1] ^ key[0], p1.low, p0.high ^ counter[3] ^ key[1], p0.low};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

std::uint64_t stable_hash(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const char byte : bytes) {
    hash ^= static_cast<unsigned char>(byte);
    hash *= 0x100000001B3;
  }
  // MurmurHash3's finaliser: FNV alone leaves its high bits poorly mixed for short inputs.
  hash ^= hash >> 33;
  hash *= 0xFF51AFD7ED558CCD;
  hash ^= hash >> 33;
  hash *= 0xC4CEB9FE1A85EC53;
  return hash ^ (hash >> 33);
}

std::array<std::uint32_t, 4> Random::words(std::uint64_t index) const {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                     static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                    {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
}

std::uint64_t Random::bits(std::uint64_t index) const {
  const auto w = words(index);
  return static_cast<std::uint64_t>(w[1]) << 32 | w[0];
}

float Random::uniform(std::uint64_t index) const {
  return static_cast<float>(words(index)[0] >> 8) * 0x1p-24f;
}

std::uint64_t Random::below(std::uint64_t index, std::uint64_t bound) const {
  return static_cast<std::uint64_t>(static_cast<unsigned __int128>(bits(index)) * bound >> 64);
}

float Random::normal(std::uint64_t index) const {
  const auto w = words(index);
  const double u = (static_cast<double>(w[0]) + 0.5) * 0x1p-32;  // in (0, 1): the logarithm is finite
  const double v = static_cast<double>(w[1]) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v));
}

}  // namespace quaver
