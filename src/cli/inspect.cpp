#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "train/run_folder.h"

namespace quaver::cli {
namespace {

using nlohmann::ordered_json;

/// "e5m2 x e4m3 -> bf16"
std::string types_of(const GemmRecord& gemm) {
  if (gemm.fp8_runs + gemm.other_runs == 0) return "never ran";
  return fmt::format("{} x {} -> {}", name_of(gemm.a), name_of(gemm.b), name_of(gemm.out));
}

void print_linear(const LinearState& state) {
  fmt::print("{}  {}\n", state.name, state.recipe ? describe(*state.recipe) : "no FP8 state");
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    const GemmRecord& gemm = state.gemms[i];
    const GemmPolicy& policy = state.policy[i];
    fmt::print("  {:<11}  {:<20}  {} times in FP8, {} not{}{}\n", kGemmNames[i], types_of(gemm),
               gemm.fp8_runs, gemm.other_runs, policy.fp8 ? "" : ": " + policy.why_not,
               state.recipe && !gemm.recipe.empty() && gemm.recipe != describe(*state.recipe)
                   ? ", " + gemm.recipe
                   : "");
  }
  if (!state.recipe || !is_delayed(*state.recipe)) return;
  for (const auto& [name, member] : kSlots) {
    if (const auto& slot = state.*member) {
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
                           {"fp8_runs", gemm.fp8_runs},
                           {"other_runs", gemm.other_runs}};
    if (!state.policy[i].fp8) json[kGemmNames[i]]["why_not_fp8"] = state.policy[i].why_not;
  }
  if (!state.recipe) return json;
  json["owns_input"] = state.owns_input;
  for (const auto& [name, member] : kSlots) {
    const auto& slot = state.*member;
    if (slot) json[name] = {{"scale", slot->scale}, {"last_amax", slot->amax_history.back()}};
  }
  return json;
}

}  // namespace

int inspect(const InspectArguments& arguments) {
  const std::vector<LinearState> states = load_fp8_state(arguments.run);
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
