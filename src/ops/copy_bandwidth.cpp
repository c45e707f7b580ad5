#include "ops/copy_bandwidth.h"

#include <algorithm>
#include <cstring>

#include "base/busy_timer.h"

namespace quaver {
namespace {

constexpr std::int64_t kBytes = std::int64_t{1} << 26;  // from and to: beyond any cache
constexpr std::int64_t kPiece = std::int64_t{1} << 18;

}  // namespace

CopyBandwidth::CopyBandwidth(int threads) : threads_(threads), from_(kBytes, 1), to_(kBytes) {}

double CopyBandwidth::measure() {
  const std::int64_t stretch = (kBytes + threads_.count() - 1) / threads_.count();
  return 2.0 * static_cast<double>(kBytes) / std::min(seconds_of_copy(stretch), seconds_of_copy(kPiece));
}

double CopyBandwidth::seconds_of_copy(std::int64_t piece) {
  const BusyTimer timer(threads_.count());
  threads_.for_blocks(kBytes, piece, [&](std::int64_t begin, std::int64_t end) {
    std::memcpy(to_.data() + begin, from_.data() + begin, static_cast<std::size_t>(end - begin));
  });
  return timer.seconds();
}

}  // namespace quaver
