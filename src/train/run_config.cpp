#include "train/run_config.h"

#include <fmt/format.h>

#include "base/files.h"
#include "train/fp8_recipes.h"
#include "train/fp8_state.h"
#include "train/run_config_schema.h"

namespace quaver {

std::string_view name_of(Precision precision) {
  switch (precision) {
    case Precision::fp8:
      return "fp8";
    case Precision::bf16:
      return "bf16";
    case Precision::fp32:
      return "fp32";
  }
  return "unknown";
}

std::string_view name_of(ScheduleKind schedule) {
  return schedule == ScheduleKind::cosine ? "cosine" : "wsd";
}

Recipe Fp8Config::make_recipe() const {
  return quaver::make_recipe(recipe, *this);
}

RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides) {
  return parse_run_config(read_file(path), path, overrides);
}

namespace {

std::string to_toml(const Fp8Override& override) {
  std::vector<std::string> gemms, operands;
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    if (override.gemms[i]) gemms.push_back(quote_toml(kGemmNames[i]));
    if (override.operands[i]) operands.push_back(quote_toml(name_of(static_cast<OperandRole>(i))));
  }
  std::string text = fmt::format("\n[[fp8.override]]\nmatch = {}\ngemm = [{}]\noperand = [{}]\nrecipe = {}\n",
                                 quote_toml(override.match), fmt::join(gemms, ", "),
                                 fmt::join(operands, ", "), quote_toml(override.recipe));
  if (!override.why.empty()) text += fmt::format("why = {}\n", quote_toml(override.why));
  return text;
}

}  // namespace

std::string to_toml(const RunConfig& config) {
  std::string text;
  std::string_view section;
  for (const ConfigField& field : run_config_fields()) {
    if (section_of(field.name) != section) {
      section = section_of(field.name);
      text += fmt::format("\n[{}]\n", section);
    }
    const std::string_view key =
        section.empty() ? field.name : std::string_view(field.name).substr(section.size() + 1);
    text += fmt::format("{} = {}  # {}; {}\n", key, field.toml(config), field.doc, field.expected);
  }
  for (const Fp8Override& override : config.fp8.overrides) text += to_toml(override);
  return text;
}

std::vector<std::string> differing_keys(const RunConfig& a, const RunConfig& b) {
  std::vector<std::string> keys;
  for (const ConfigField& field : run_config_fields()) {
    if (field.toml(a) != field.toml(b)) keys.push_back(field.name);
  }
  return keys;
}

bool describes_weights(std::string_view key) {
  return key.starts_with("model.") && key != "model.context" && key != "model.init_std" &&
         key != "model.gate_bias_init" && key != "model.recompute";
}

}  // namespace quaver
