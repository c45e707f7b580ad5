#include "observe/what_if.h"

#include <charconv>
#include <cmath>
#include <sstream>

#include "base/check.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

constexpr int kMxfp8Block = 32;

/// The number after "KEY=".
template <typename T>
std::optional<T> value_after(const std::string& text, const std::string& key) {
  if (!text.starts_with(key + "=")) return std::nullopt;
  T value{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + key.size() + 1, end, value);
  if (error != std::errc() || rest != end) return std::nullopt;
  return value;
}

Alternative parse_one(const std::string& text) {
  if (text == "e4m3") return {text, DType::e4m3, {}, {}, 0};
  if (text == "e5m2") return {text, DType::e5m2, {}, {}, 0};
  if (text == "mxfp8") return {text, DType::e4m3, {}, {}, kMxfp8Block};
  if (const auto margin = value_after<int>(text, "margin"); margin && std::abs(*margin) <= 64)
    return {text, {}, margin, {}, 0};
  if (const auto scale = value_after<float>(text, "scale"); scale && *scale > 0 && std::isfinite(*scale))
    return {text, {}, {}, scale, 0};
  fail(ErrorKind::usage,
       "--what-if: expected e4m3, e5m2, margin=N, scale=S with a positive S, or mxfp8, found \"{}\". Hint: "
       "several stand with commas between them",
       text);
}

/// The scale for an amax of the tensor's, as delayed scaling computes it.
float scale_for(const CastTensor& tensor, DType format, int margin) {
  const float unit = std::ldexp(fp8_max(format), -margin);
  if (tensor.amax_history.empty()) return std::ldexp(unit, -(tensor.exponents->top + 1));
  const float own = std::ldexp(fp8_max(tensor.format), -tensor.margin);
  return tensor.scale * (unit / own);
}

}  // namespace

std::vector<Alternative> parse_alternatives(const std::string& text) {
  std::vector<Alternative> all;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) all.push_back(parse_one(part));
  if (all.empty()) parse_one(text);
  return all;
}

WhatIf what_if(const CastTensor& tensor, const Alternative& alternative) {
  require(tensor.exponents.has_value(), "what_if: the exponents of {} were not counted", tensor.name);
  const DType format = alternative.format.value_or(tensor.format);
  WhatIf result;
  if (alternative.block > 0) {
    const BlockForecast blocks = forecast_blocks(*tensor.exponents, format, alternative.block);
    result.underflowed = blocks.underflowed;
    result.if_mixed = blocks.if_mixed;
    return result;
  }
  result.scale = alternative.scale ? *alternative.scale
                                   : scale_for(tensor, format, alternative.margin.value_or(tensor.margin));
  const CastForecast cast = forecast_cast(*tensor.exponents, format, result.scale);
  result.saturated = cast.saturated;
  result.underflowed = cast.underflowed;
  return result;
}

}  // namespace quaver
