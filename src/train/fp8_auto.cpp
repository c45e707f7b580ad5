#include "train/fp8_auto.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "base/check.h"
#include "base/glob.h"
#include "quaver/linear.h"
#include "train/fp8_policy.h"
#include "train/fp8_state.h"
#include "train/linear_timer.h"

namespace quaver {
namespace {

using Choice = std::array<bool, 3>;

Choice choice_of(int mask) {
  return {(mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0};
}

/// "blocks.*.mlp.up_proj" of "blocks.7.mlp.up_proj".
std::string of_all_blocks(const std::string& name) {
  constexpr std::string_view kPrefix = "blocks.";
  const std::size_t dot = name.find('.', kPrefix.size());
  return name.starts_with(kPrefix) && dot != std::string::npos ? "blocks.*" + name.substr(dot) : name;
}

bool matches_only(const std::string& pattern, const std::vector<std::string>& names,
                  const std::vector<std::string>& all) {
  return std::all_of(all.begin(), all.end(), [&](const std::string& name) {
    return !glob_matches(pattern, name) || std::find(names.begin(), names.end(), name) != names.end();
  });
}

/// The fewest patterns that we know how to write for exactly these names.
std::vector<std::string> patterns_of(const std::vector<std::string>& names,
                                     const std::vector<std::string>& all) {
  std::vector<std::string> patterns;
  for (const std::string& name : names) {
    const std::string wide = of_all_blocks(name);
    const std::string& pattern = matches_only(wide, names, all) ? wide : name;
    if (std::find(patterns.begin(), patterns.end(), pattern) == patterns.end()) patterns.push_back(pattern);
  }
  return patterns;
}

std::string milliseconds(double seconds) {
  return fmt::format("{:.3g} ms", seconds * 1e3);
}

}  // namespace

double LinearTimes::total(const Choice& in_fp8) const {
  const auto [fprop, dgrad, wgrad] = in_fp8;
  double sum = 0;
  for (std::size_t i = 0; i < in_fp8.size(); ++i) sum += in_fp8[i] ? fp8[i] : bf16[i];
  sum += fprop != wgrad ? input_both : fprop ? input_fp8 : input_bf16;
  sum += fprop || dgrad ? weight_fp8 : 0;
  sum += !fprop || !dgrad ? weight_bf16 : 0;
  sum += dgrad || wgrad ? gradient_fp8 : 0;
  return sum;
}

Choice fastest_choice(const LinearTimes& times, const Choice& allowed) {
  Choice best = allowed;
  for (int mask = 7; mask >= 0; --mask) {
    Choice choice = choice_of(mask);
    for (std::size_t i = 0; i < choice.size(); ++i) choice[i] = choice[i] && allowed[i];
    if (times.total(choice) < times.total(best)) best = choice;
  }
  return best;
}

std::string MeasuredLinears::reason(std::size_t gemm) const {
  Choice with = in_fp8;
  with[gemm] = true;
  return fmt::format("fp8.auto: {} a micro-batch, {} with {} in FP8", milliseconds(times.total(in_fp8)),
                     milliseconds(times.total(with)), kGemmNames[gemm]);
}

std::vector<MeasuredLinears> measure_linears(Backend& backend, Module& model, const Recipe& recipe,
                                             std::int64_t rows, std::int64_t micro_batches_per_step) {
  using Key = std::tuple<std::int64_t, std::int64_t, std::int64_t, Choice>;
  std::map<Key, std::size_t> known;
  std::vector<MeasuredLinears> groups;
  for (const auto& [name, linear] : linears_of(model)) {
    const auto& policy = linear->policy();
    const Choice allowed = {policy[0].fp8, policy[1].fp8, policy[2].fp8};
    const auto& options = linear->options();
    const auto [place, added] = known.try_emplace(
        Key{options.in_features, options.out_features, linear->input_readers(), allowed}, groups.size());
    if (added) {
      MeasuredLinears group{{}, rows, options.in_features, options.out_features, {}, allowed, allowed};
      if (allowed != Choice{}) {
        group.times = time_linear(backend, recipe, {rows, options.in_features, options.out_features},
                                  linear->input_readers(), micro_batches_per_step);
        group.in_fp8 = fastest_choice(group.times, allowed);
      }
      groups.push_back(std::move(group));
    }
    groups[place->second].names.push_back(name);
  }
  return groups;
}

std::vector<Fp8Override> overrides_of(const std::vector<MeasuredLinears>& measured,
                                      const std::vector<std::string>& all) {
  std::vector<Fp8Override> overrides;
  for (const MeasuredLinears& group : measured) {
    for (std::size_t i = 0; i < group.in_fp8.size(); ++i) {
      if (!group.allowed[i] || group.in_fp8[i]) continue;
      Choice gemms{};
      gemms[i] = true;
      for (const std::string& pattern : patterns_of(group.names, all))
        overrides.push_back({.match = pattern, .gemms = gemms, .why = group.reason(i)});
    }
  }
  return overrides;
}

std::string describe(const MeasuredLinears& measured) {
  std::string text =
      fmt::format("fp8.auto | {} x {} -> {} | {}{}", measured.rows, measured.in_features,
                  measured.out_features, measured.names.front(),
                  measured.names.size() > 1 ? fmt::format(" and {} more", measured.names.size() - 1) : "");
  if (measured.allowed == Choice{}) return text + " | BF16 by configuration";
  for (std::size_t i = 0; i < measured.in_fp8.size(); ++i)
    text += fmt::format(" | {} {} ({} alone, BF16 {})", kGemmNames[i], measured.in_fp8[i] ? "FP8" : "BF16",
                        milliseconds(measured.times.fp8[i]), milliseconds(measured.times.bf16[i]));
  return text + fmt::format(" | {}, all FP8 {}, all BF16 {} with casts",
                            milliseconds(measured.times.total(measured.in_fp8)),
                            milliseconds(measured.times.total(measured.allowed)),
                            milliseconds(measured.times.total({})));
}

std::vector<std::string> describe(const Fp8AutoReport& report) {
  std::vector<std::string> lines;
  for (const MeasuredLinears& measured : report.linears) lines.push_back(describe(measured));
  if (report.steps) lines.push_back(describe(*report.steps));
  return lines;
}

}  // namespace quaver
