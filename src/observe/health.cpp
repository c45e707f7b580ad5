#include "observe/health.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "quaver/fp8_format.h"

namespace quaver {
namespace {

constexpr double kSaturation = 1e-3, kUnderflow = 0.01, kHopeless = 0.05;
/// An amax that is 8 times what came after it costs three of E4M3's binades.
constexpr float kStaleFactor = 8;
constexpr float kRise = 1.25f;

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

/// Casts whose x is a number other than zero.
std::int64_t nonzero_numbers(const CastTotals& totals) {
  return totals.cast - totals.zeros - totals.nan;
}

std::string percent(double x) {
  return fmt::format("{:.3g}%", 100 * x);
}

/// "0.2%" or "0.1% to 0.3%".
std::string percent(const ShareBounds& bounds) {
  const std::string low = percent(bounds.low), high = percent(bounds.high);
  return low == high ? low : low + " to " + high;
}

/// The finished amaxes, oldest first, without the entries of before the first.
std::vector<float> finished(const CastTensor& tensor) {
  const auto& history = tensor.amax_history;
  // Entry 0 stages; of a history of one entry nothing finished remains.
  const auto begin = std::find_if(history.begin() + (history.empty() ? 0 : 1), history.end(),
                                  [](float amax) { return amax != 0; });
  return {begin, history.end()};
}

/// "; E5M2 would lose 0.1%": what else could be done about underflow.
std::string alternatives(const CastTensor& tensor) {
  if (!tensor.exponents) return "; fp8.histogram_every counts exponents, which tell what would help";
  std::string text;
  const float best = best_scale(*tensor.exponents, tensor.format);
  text += fmt::format("; with the scale {:.3g} it would be {}", best,
                      percent(forecast_cast(*tensor.exponents, tensor.format, best).underflowed));
  if (tensor.format == DType::e4m3) {
    const float wide = best_scale(*tensor.exponents, DType::e5m2);
    text +=
        fmt::format(", in E5M2 {}", percent(forecast_cast(*tensor.exponents, DType::e5m2, wide).underflowed));
  }
  return text;
}

}  // namespace

std::optional<Advice> not_finite(const CastTensor& tensor) {
  const CastTotals& totals = tensor.totals;
  if (totals.nan + totals.infinite == 0) return std::nullopt;
  return Advice{
      tensor.name, "not_finite",
      fmt::format("{} NaN and {} infinities were cast: look for the step in metrics.jsonl (\"skipped\"), and "
                  "lower train.lr or lengthen the warm-up if they return",
                  totals.nan, totals.infinite)};
}

std::optional<Advice> saturates(const CastTensor& tensor) {
  const double part = share(tensor.totals.saturated, tensor.totals.cast);
  if (part <= kSaturation) return std::nullopt;
  return Advice{
      tensor.name, "saturates",
      fmt::format("{} of {} numbers cast were above what {} holds at their scale (now {:.4g}): a margin "
                  "(fp8.margin = 1) or amax_compute_algo = \"max\" leaves room",
                  percent(part), tensor.totals.cast, name_of(tensor.format), tensor.scale)};
}

std::optional<Advice> underflows(const CastTensor& tensor) {
  const double part = share(tensor.totals.underflowed, nonzero_numbers(tensor.totals));
  if (part <= kUnderflow) return std::nullopt;
  return Advice{tensor.name, "underflows",
                fmt::format("{} of the numbers that were not zero became zero in {}{}", percent(part),
                            name_of(tensor.format), alternatives(tensor))};
}

std::optional<Advice> wants_bf16(const CastTensor& tensor) {
  if (!tensor.exponents) return std::nullopt;
  double least = 1;
  for (const DType format : {DType::e4m3, DType::e5m2}) {
    const float best = best_scale(*tensor.exponents, format);
    least = std::min(least, forecast_cast(*tensor.exponents, format, best).underflowed.low);
  }
  if (least <= kHopeless) return std::nullopt;
  return Advice{
      tensor.name, "wants_bf16",
      fmt::format("at least {} of its numbers lie too far below its largest one (2^{}) for any one scale, in "
                  "E4M3 or E5M2: an [[fp8.override]] keeps the products that read it in BF16",
                  percent(least), tensor.exponents->top + 1)};
}

std::optional<Advice> stale_history(const CastTensor& tensor) {
  if (tensor.algo != AmaxCompute::max) return std::nullopt;
  const std::vector<float> amaxes = finished(tensor);
  const auto largest = std::max_element(amaxes.begin(), amaxes.end());
  if (largest == amaxes.end() || !std::isfinite(*largest)) return std::nullopt;
  const std::ptrdiff_t age = amaxes.end() - largest - 1;
  if (2 * age < static_cast<std::ptrdiff_t>(tensor.amax_history.size())) return std::nullopt;
  const float since = *std::max_element(largest + 1, amaxes.end());
  if (*largest < kStaleFactor * since) return std::nullopt;
  return Advice{
      tensor.name, "stale_history",
      fmt::format(
          "its scale follows an amax of {:.4g} from {} updates ago; since then none was above {:.4g}, "
          "so {:.1f} binades are unused: a shorter fp8.amax_history_len",
          *largest, age, since, std::log2(*largest / since))};
}

std::optional<Advice> lags(const CastTensor& tensor) {
  const std::vector<float> amaxes = finished(tensor);
  const float rise = std::max(kRise, std::ldexp(1.0f, tensor.margin));
  std::size_t steps = 0;
  for (std::size_t i = amaxes.size(); i-- > 1 && amaxes[i] >= rise * amaxes[i - 1];) ++steps;
  // Under `max` an earlier, larger amax may have left the room that the rise needed.
  const auto begin = amaxes.end() - static_cast<std::ptrdiff_t>(steps);
  const bool had_room = tensor.algo == AmaxCompute::max && steps > 0 &&
                        std::any_of(amaxes.begin(), begin, [&](float amax) { return amax >= amaxes.back(); });
  if (steps < 2 || had_room) return std::nullopt;
  const float before = *(begin - 1), now = amaxes.back();
  return Advice{
      tensor.name, "lags",
      fmt::format(
          "its amax rose in each of the last {} updates, from {:.4g} to {:.4g}: every cast in that time "
          "met numbers above what its scale, which is an update late, was made for",
          steps, before, now)};
}

std::vector<Advice> advise(std::span<const CastTensor> tensors) {
  constexpr std::array kRules = {not_finite, saturates, underflows, wants_bf16, stale_history, lags};
  std::vector<Advice> all;
  for (const CastTensor& tensor : tensors) {
    for (const auto rule : kRules) {
      if (auto advice = rule(tensor)) all.push_back(std::move(*advice));
    }
  }
  return all;
}

}  // namespace quaver
