#include "train/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace quaver {
namespace {

/// The double nearest to the shortest decimal form of `value`: 0.003, not 0.0030000000260770321.
double readable(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  return std::stod(fmt::format("{}", value));
}

}  // namespace

std::string to_json_line(const StepReport& report) {
  nlohmann::ordered_json line = {{"step", report.step},
                                 {"loss", report.loss.mean()},
                                 {"lr", readable(report.lr)},
                                 {"grad_norm", readable(report.gradient_norm)},
                                 {"tokens_per_s", report.tokens_per_second()},
                                 {"step_ms", report.seconds * 1e3},
                                 {"fp8_cast", report.casts.cast},
                                 {"fp8_saturated", report.casts.saturated},
                                 {"fp8_underflowed", report.casts.underflowed},
                                 {"fp8_zeros", report.casts.zeros},
                                 {"fp8_nan", report.casts.nan},
                                 {"fp8_infinite", report.casts.infinite}};
  if (!report.skipped.empty()) line["skipped"] = report.skipped;
  if (report.validation) {
    line["val_loss"] = report.validation->mean();
    if (report.validation->bytes > 0) line["val_bpb"] = report.validation->bits_per_byte();
  }
  return line.dump();
}

std::vector<Scalar> scalars_of(const StepReport& report) {
  std::vector<Scalar> scalars;
  const auto line = nlohmann::ordered_json::parse(to_json_line(report));
  for (const auto& [name, value] : line.items()) {
    if (name != "step" && value.is_number()) scalars.push_back({name, value.get<float>()});
  }
  return scalars;
}

std::string metrics_until(std::int64_t step, std::string_view lines) {
  std::string kept;
  while (!lines.empty()) {
    const std::string_view line = lines.substr(0, lines.find('\n'));
    lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool is_report = json.is_object() && json.contains("step") && json["step"].is_number_integer();
    if (is_report && json["step"].get<std::int64_t>() <= step) kept.append(line).append("\n");
  }
  return kept;
}

}  // namespace quaver
