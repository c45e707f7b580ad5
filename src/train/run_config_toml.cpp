// Reading run files: TOML and overrides into a RunConfig, by the schema.
#include <toml++/toml.h>
#include <algorithm>
#include <map>
#include <optional>
#include <sstream>

#include "base/check.h"
#include "base/glob.h"
#include "base/suggest.h"
#include "train/fp8_recipes.h"
#include "train/fp8_state.h"
#include "train/run_config_schema.h"

namespace quaver {
namespace {

/// Where a value was given: "runs/x.toml:12:8" or "command line".
using Places = std::map<std::string, std::string>;

std::string place_of(const std::string& source, const toml::source_region& region) {
  return fmt::format("{}:{}:{}", source, region.begin.line, region.begin.column);
}

ConfigValue to_value(const toml::node& node) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  return std::monostate{};
}

std::string describe(const toml::node& node) {
  if (node.is_table()) return "a table";
  if (node.is_array()) return "an array";
  if (const auto* text = node.as_string()) return quote_toml(text->get());
  if (const auto* number = node.as_floating_point()) return number_to_toml(number->get());
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  return text.str();
}

/// Tables, and so no field of the schema.
constexpr const char* kOverrides = "fp8.override";

std::vector<std::string> field_names() {
  std::vector<std::string> names;
  for (const ConfigField& field : run_config_fields()) names.push_back(field.name);
  names.emplace_back(kOverrides);
  return names;
}

/// The field of another section whose key is `name`'s own ("lr" was meant as "train.lr"), else the nearest of
/// all.
std::string suggest_field(const std::string& name) {
  const std::string key = "." + name.substr(name.rfind('.') + 1);
  for (const ConfigField& field : run_config_fields()) {
    if (field.name.ends_with(key)) return field.name;
  }
  return nearest_name(name, field_names());
}

std::string hint_for_key(const std::string& name) {
  const std::string suggestion = suggest_field(name);
  if (!suggestion.empty()) return fmt::format("did you mean {}?", suggestion);
  const std::string_view section = section_of(name);
  std::vector<std::string> keys;
  for (const ConfigField& field : run_config_fields()) {
    if (section_of(field.name) == section) keys.push_back(field.name);
  }
  return fmt::format("known keys: {}", fmt::join(keys, ", "));
}

bool is_section(std::string_view name) {
  const auto sections = config_sections();
  return std::find(sections.begin(), sections.end(), name) != sections.end();
}

void refuse_section(const std::string& place, const std::string& name) {
  const auto sections = config_sections();
  const std::string suggestion = nearest_name(name, sections);
  if (!suggestion.empty())
    fail(ErrorKind::usage, "{}: {}: unknown section; did you mean [{}]?", place, name, suggestion);
  fail(ErrorKind::usage, "{}: {}: unknown section; the sections are [{}]", place, name,
       fmt::join(sections, "], ["));
}

/// `where` begins the message: the place and, unless the place shows it, the field's name.
void assign(RunConfig& config, const std::string& where, const ConfigField& field, const toml::node& node) {
  if (field.assign(config, to_value(node))) return;
  const auto* text = node.as_string();
  const std::string suggestion = text ? nearest_name(text->get(), field.choices) : "";
  fail(ErrorKind::usage, "{}: expected {}, found {}{}", where, field.expected, describe(node),
       suggestion.empty() ? "" : fmt::format("; did you mean \"{}\"?", suggestion));
}

void assign_key(RunConfig& config, Places& places, const std::string& source, const std::string& name,
                const toml::key& key, const toml::node& node) {
  const ConfigField* field = find_config_field(name);
  if (!field)
    fail(ErrorKind::usage, "{}: {}: unknown key; {}", place_of(source, key.source()), name,
         hint_for_key(name));
  places[name] = place_of(source, node.source());
  assign(config, places[name] + ": " + name, *field, node);
}

/// Which of three words an array names.
std::array<bool, 3> read_words(const std::string& where, const toml::node& node,
                               const std::array<const char*, 3>& known) {
  std::array<bool, 3> named{};
  const toml::array* const words = node.as_array();
  bool good = words && !words->empty();
  for (std::size_t i = 0; good && i < words->size(); ++i) {
    const auto* const word = (*words)[i].as_string();
    const auto found = std::find(known.begin(), known.end(), word ? word->get() : "");
    good = found != known.end();
    if (good) named[static_cast<std::size_t>(found - known.begin())] = true;
  }
  if (!good) {
    fail(ErrorKind::usage, "{}: expected an array of \"{}\", found {}", where, fmt::join(known, "\", \""),
         describe(node));
  }
  return named;
}

std::string read_word(const std::string& where, const char* expected, const toml::node& node) {
  const auto* const word = node.as_string();
  if (!word || word->get().empty())
    fail(ErrorKind::usage, "{}: expected {}, found {}", where, expected, describe(node));
  return word->get();
}

std::string read_pattern(const std::string& where, const toml::node& node) try {
  const std::string pattern = read_word(where, "a pattern of module names", node);
  glob_matches(pattern, "");  // refuses one that is no pattern
  return pattern;
} catch (const Error& error) {
  const std::string message = error.what();
  fail(error.kind(), "{}", message.starts_with(where) ? message : where + ": " + message);
}

std::string read_recipe(const std::string& where, const toml::node& node) {
  std::vector<std::string> names = recipe_names();
  names.insert(names.begin(), kBf16);
  const std::string recipe = node.value_or(std::string());
  if (std::find(names.begin(), names.end(), recipe) == names.end()) {
    fail(ErrorKind::usage, "{}: expected one of \"{}\", found {}", where, fmt::join(names, "\", \""),
         describe(node));
  }
  return recipe;
}

Fp8Override read_override(const std::string& source, const toml::table& table) {
  Fp8Override override;
  for (const auto& [key, node] : table) {
    const std::string_view name = key.str();
    const std::string where = fmt::format("{}: {}.{}", place_of(source, node.source()), kOverrides, name);
    if (name == "match") {
      override.match = read_pattern(where, node);
    } else if (name == "gemm") {
      override.gemms = read_words(where, node, kGemmNames);
    } else if (name == "operand") {
      override.operands = read_words(where, node, {"input", "weight", "grad_output"});
    } else if (name == "recipe") {
      override.recipe = read_recipe(where, node);
    } else if (name == "why") {
      override.why = read_word(where, "a string that is not empty", node);
    } else {
      fail(ErrorKind::usage, "{}: {}.{}: unknown key; known keys: match, gemm, operand, recipe, why",
           place_of(source, key.source()), kOverrides, name);
    }
  }
  for (const char* required : {"match", "recipe"}) {
    if (!table.contains(required)) {
      fail(ErrorKind::usage, "{}: {}.{}: missing", place_of(source, table.source()), kOverrides, required);
    }
  }
  if (override.recipe != kBf16 && override.operands != std::array{true, true, true}) {
    fail(ErrorKind::usage,
         "{}: {}.operand: names operands that stay in BF16; expected recipe = \"{}\", found \"{}\"",
         place_of(source, table.source()), kOverrides, kBf16, override.recipe);
  }
  return override;
}

void read_overrides(RunConfig& config, const std::string& source, const toml::node& node) {
  const toml::array* const tables = node.as_array();
  if (!tables || (!tables->empty() && !tables->is_homogeneous<toml::table>())) {
    fail(ErrorKind::usage, "{}: {}: expected tables [[{}]], found {}", place_of(source, node.source()),
         kOverrides, kOverrides, describe(node));
  }
  for (const toml::node& table : *tables)
    config.fp8.overrides.push_back(read_override(source, *table.as_table()));
}

void assign_table(RunConfig& config, Places& places, const std::string& source, const toml::table& table) {
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const toml::table* section = node.as_table();
    if (!is_section(name)) {
      if (section && !find_config_field(name)) refuse_section(place_of(source, key.source()), name);
      assign_key(config, places, source, name, key, node);
      continue;
    }
    places[name] = place_of(source, node.source());
    if (!section)
      fail(ErrorKind::usage, "{}: {}: expected a section [{}], found {}", places[name], name, name,
           describe(node));
    for (const auto& [inner, value] : *section) {
      const std::string inner_name = fmt::format("{}.{}", name, inner.str());
      if (inner_name == kOverrides) {
        read_overrides(config, source, value);
      } else {
        assign_key(config, places, source, inner_name, inner, value);
      }
    }
  }
}

toml::table parse_toml(std::string_view text, const std::string& source) try {
  return toml::parse(text, source);
} catch (const toml::parse_error& error) {
  fail(ErrorKind::usage, "{}: {}", place_of(source, error.source()), error.description());
}

/// The one value that `text` is in TOML, or nothing.
std::optional<toml::table> parse_value(const std::string& text) try {
  toml::table table = toml::parse("value = " + text);
  // A line end in `text` would begin another key.
  return table.size() == 1 ? std::optional(std::move(table)) : std::nullopt;
} catch (const toml::parse_error&) {
  return std::nullopt;
}

/// The value of an override: TOML, or a bare word, which stands for a string.
toml::table parse_override_value(const std::string& place, const ConfigField& field,
                                 const std::string& text) {
  auto value = parse_value(text);
  if (!value || (field.is_text && !value->begin()->second.is_string())) value = parse_value(quote_toml(text));
  if (!value) fail(ErrorKind::usage, "{}: the value is not UTF-8 text", place);
  return std::move(*value);
}

void apply_override(RunConfig& config, Places& places, const std::string& override) {
  const std::size_t equals = override.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail(ErrorKind::usage, "command line: {}: expected section.key=value", override);
  }
  const std::string name = override.substr(0, equals);
  const ConfigField* field = find_config_field(name);
  require(name != kOverrides, "command line: {}: tables [[{}]] stand in run files only", override,
          kOverrides);
  if (!field) fail(ErrorKind::usage, "command line: {}: unknown key; {}", override, hint_for_key(name));
  const std::string place = "command line: " + override;
  const toml::table value = parse_override_value(place, *field, override.substr(equals + 1));
  assign(config, place, *field, value.begin()->second);
  places[name] = place;
}

void check_required(const Places& places, const std::string& source) {
  for (const ConfigField& field : run_config_fields()) {
    if (!field.required || places.contains(field.name)) continue;
    const auto section = places.find(std::string(section_of(field.name)));
    fail(ErrorKind::usage, "{}: {}: missing; expected {}: {}",
         section == places.end() ? source : section->second, field.name, field.expected, field.doc);
  }
}

/// What concerns several fields: the message of validate() begins with the field's name, whose place is put
/// before it.
void check_model(const ModelConfig& model, const Places& places, const std::string& source) try {
  validate(model);
} catch (const Error& error) {
  const std::string message = error.what();
  const auto place = places.find(message.substr(0, message.find(':')));
  fail(error.kind(), "{}: {}", place == places.end() ? source : place->second, message);
}

}  // namespace

RunConfig parse_run_config(std::string_view text, const std::string& source_name,
                           std::span<const std::string> overrides) {
  RunConfig config;
  Places places;
  assign_table(config, places, source_name, parse_toml(text, source_name));
  for (const std::string& override : overrides) apply_override(config, places, override);
  check_required(places, source_name);
  check_model(config.model, places, source_name);
  return config;
}

}  // namespace quaver
