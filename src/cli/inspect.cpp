#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/commands.h"
#include "observe/what_if.h"
#include "train/fp8_health.h"
#include "train/run_folder.h"

namespace quaver::cli {
namespace {

using nlohmann::ordered_json;

/// "e5m2 x e4m3 -> bf16"
std::string types_of(const GemmRecord& gemm) {
  if (gemm.fp8_runs + gemm.other_runs == 0) return "never ran";
  return fmt::format("{} x {} -> {}", name_of(gemm.a), name_of(gemm.b), name_of(gemm.out));
}

/// Why some runs of a product were not in FP8.
std::string why_not(const GemmRecord& gemm, const GemmPolicy& policy) {
  if (!policy.fp8) return ": " + policy.why_not;
  return gemm.other_runs > 0 ? ": outside an enabled scope" : "";
}

/// The smallest and the largest scale of an input's features.
std::pair<float, float> channel_range(const LinearState& state) {
  const auto range = std::minmax_element(state.channel_scales.begin(), state.channel_scales.end());
  return {*range.first, *range.second};
}

void print_linear(const LinearState& state) {
  fmt::print("{}  {}\n", state.name, state.recipe ? describe(*state.recipe) : "no FP8 state");
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    const GemmRecord& gemm = state.gemms[i];
    const GemmPolicy& policy = state.policy[i];
    fmt::print("  {:<11}  {:<20}  {} times in FP8, {} not{}{}\n", kGemmNames[i], types_of(gemm),
               gemm.fp8_runs, gemm.other_runs, why_not(gemm, policy),
               state.recipe && !gemm.recipe.empty() && gemm.recipe != describe(*state.recipe)
                   ? ", " + gemm.recipe
                   : "");
    if (!gemm.kernel.empty()) fmt::print("  {:<11}  {}\n", "", gemm.kernel);
  }
  if (!state.channel_scales.empty()) {
    const auto [smallest, largest] = channel_range(state);
    fmt::print("  {:<11}  {} features, divided by {:.6g} to {:.6g}; weight by current scaling\n", "smoothed",
               state.channel_scales.size(), smallest, largest);
  }
  if (!state.recipe || !is_delayed(*state.recipe)) return;
  for (const auto& [name, member] : kSlots) {
    if (const auto& slot = state.*member) {
      if (slot->amax_history.empty()) continue;
      fmt::print("  {:<11}  scale {:.6g}  last amax {:.6g}\n", name, slot->scale, slot->amax_history.back());
    } else {
      fmt::print("  {:<11}  shared with the module before it\n", name);
    }
  }
}

ordered_json to_json(const LinearState& state) {
  ordered_json json = {{"name", state.name}};
  if (state.recipe) json["recipe"] = describe(*state.recipe);
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    const GemmRecord& gemm = state.gemms[i];
    json[kGemmNames[i]] = {{"types", types_of(gemm)},
                           {"recipe", gemm.recipe},
                           {"kernel", gemm.kernel},
                           {"fp8_runs", gemm.fp8_runs},
                           {"other_runs", gemm.other_runs}};
    if (const std::string why = why_not(gemm, state.policy[i]); !why.empty())
      json[kGemmNames[i]]["why_not_fp8"] = why.substr(2);
  }
  if (!state.recipe) return json;
  json["owns_input"] = state.owns_input;
  if (!state.channel_scales.empty()) {
    const auto [smallest, largest] = channel_range(state);
    json["channel_scales"] = {{"smallest", smallest}, {"largest", largest}};
  }
  for (const auto& [name, member] : kSlots) {
    const auto& slot = state.*member;
    if (!slot) continue;
    if (!slot->amax_history.empty())
      json[name] = {{"scale", slot->scale}, {"last_amax", slot->amax_history.back()}};
    if (slot->exponents)
      json[name]["exponents"] = {{"top", slot->exponents->top},
                                 {"counts", slot->exponents->counts},
                                 {"below", slot->exponents->below},
                                 {"zeros", slot->exponents->zeros},
                                 {"non_finite", slot->exponents->non_finite}};
  }
  return json;
}

int health(const std::vector<LinearState>& states, bool json) {
  const std::vector<CastTensor> tensors = cast_tensors(states);
  const std::vector<Advice> advice = advise(tensors);
  if (json) {
    ordered_json list = ordered_json::array();
    for (const Advice& one : advice)
      list.push_back({{"tensor", one.tensor}, {"rule", one.rule}, {"text", one.text}});
    fmt::print("{}\n", ordered_json{{"tensors", tensors.size()}, {"advice", std::move(list)}}.dump());
    return 0;
  }
  for (const Advice& one : advice) fmt::print("{:<14} {}: {}\n", one.rule, one.tensor, one.text);
  fmt::print("{} tensors cast to FP8, {} pieces of advice\n", tensors.size(), advice.size());
  return 0;
}

std::string range_of(const ShareBounds& share) {
  const std::string low = fmt::format("{:.3g}", 100 * share.low),
                    high = fmt::format("{:.3g}", 100 * share.high);
  return low == high ? high + "%" : low + "% to " + high + "%";
}

ordered_json to_json(const Alternative& alternative, const WhatIf& result) {
  const auto bounds = [](const ShareBounds& share) { return ordered_json{share.low, share.high}; };
  ordered_json json = {{"cast", alternative.name},
                       {"saturated", bounds(result.saturated)},
                       {"underflowed", bounds(result.underflowed)}};
  if (result.if_mixed) {
    json["underflowed_if_mixed"] = bounds(*result.if_mixed);
  } else {
    json["scale"] = result.scale;
  }
  return json;
}

void print(const Alternative& alternative, const WhatIf& result) {
  if (result.if_mixed) {
    fmt::print("  {:<11} saturated {}, underflowed {}; {} if large and small are mixed at random\n",
               alternative.name, range_of(result.saturated), range_of(result.underflowed),
               range_of(*result.if_mixed));
  } else {
    fmt::print("  {:<11} saturated {}, underflowed {}, scale {:.4g}\n", alternative.name,
               range_of(result.saturated), range_of(result.underflowed), result.scale);
  }
}

/// Every tensor as it is cast now, and otherwise.
int compare_casts(const std::vector<LinearState>& states, const std::string& what, bool json) {
  const std::vector<Alternative> others = parse_alternatives(what);
  ordered_json list = ordered_json::array();
  std::size_t uncounted = 0;
  for (const CastTensor& tensor : cast_tensors(states)) {
    if (!tensor.exponents) {
      ++uncounted;
      continue;
    }
    std::vector<Alternative> all = others;
    if (!tensor.amax_history.empty()) all.insert(all.begin(), {"now", {}, {}, tensor.scale, 0});
    ordered_json casts = ordered_json::array();
    if (!json) fmt::print("{}  {}\n", tensor.name, name_of(tensor.format));
    for (const Alternative& one : all) {
      const WhatIf result = what_if(tensor, one);
      if (json) {
        casts.push_back(to_json(one, result));
      } else {
        print(one, result);
      }
    }
    list.push_back(
        {{"tensor", tensor.name}, {"format", name_of(tensor.format)}, {"casts", std::move(casts)}});
  }
  if (json) {
    fmt::print("{}\n", ordered_json{{"tensors", std::move(list)}, {"uncounted", uncounted}}.dump());
  } else {
    fmt::print("{} tensors; {} whose exponents were not counted (fp8.histogram_every)\n", list.size(),
               uncounted);
  }
  return 0;
}

}  // namespace

int inspect(const InspectArguments& arguments) {
  const std::vector<LinearState> states = load_fp8_state(arguments.run);
  if (!arguments.what_if.empty()) return compare_casts(states, arguments.what_if, arguments.json);
  if (arguments.health) return health(states, arguments.json);
  ordered_json with_state = ordered_json::array(), without_state = ordered_json::array();
  for (const LinearState& state : states) {
    (state.recipe ? with_state : without_state).push_back(to_json(state));
    if (!arguments.json) print_linear(state);
  }
  if (arguments.json) {
    const auto count = with_state.size();
    const ordered_json json = {{"modules", std::move(with_state)},
                               {"without_fp8_state", std::move(without_state)},
                               {"count", count}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{} modules with FP8 state\n", with_state.size());
  }
  return 0;
}

}  // namespace quaver::cli
