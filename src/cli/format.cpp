#include "cli/format.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace quaver::cli {

std::string with_prefix(double value) {
  constexpr std::array<const char*, 5> kPrefixes = {"", "k", "M", "G", "T"};
  std::size_t prefix = 0;
  // 999.5 would be printed as 1000.
  while (std::abs(value) >= 999.5 && prefix + 1 < kPrefixes.size()) {
    value /= 1000;
    ++prefix;
  }
  const int decimals = std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f}{}", value, decimals, kPrefixes[prefix]);
}

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole % 3600 / 60);
}

std::string scientific(double value) {
  if (value == 0) return "0";
  int exponent = static_cast<int>(std::floor(std::log10(std::abs(value))));
  // 9.96 would be printed as 10.0.
  if (std::abs(value) / std::pow(10, exponent) >= 9.95) ++exponent;
  return fmt::format("{:.1f}e{}", value / std::pow(10, exponent), exponent);
}

std::string bytes(std::int64_t count) {
  const double mebibytes = static_cast<double>(count) / (1 << 20);
  return mebibytes < 1024 ? fmt::format("{:.1f} MiB", mebibytes)
                          : fmt::format("{:.2f} GiB", mebibytes / 1024);
}

std::string loss_text(const LossSum& loss) {
  return fmt::format("{:.4f} nats per token, {} bits per byte", loss.mean(), bpb_text(loss, 4));
}

std::string bpb_text(const LossSum& loss, int decimals) {
  return loss.bytes == 0 ? "n/a" : fmt::format("{:.{}f}", loss.bits_per_byte(), decimals);
}

}  // namespace quaver::cli
