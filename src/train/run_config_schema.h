/// The schema of run files: one table of fields that reading, overrides, errors and writing all follow.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "train/run_config.h"

namespace quaver {

/// A value as a run file can give it; monostate stands for tables, arrays and dates, which no field takes.
using ConfigValue = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

struct ConfigField {
  std::string name;      ///< dotted, as in overrides: "train.lr"; a key above all sections has no dot
  std::string doc;       ///< one line
  std::string expected;  ///< "a number in (0, 1]"
  std::vector<std::string> choices;  ///< of a field that is one of several words
  bool required = false;
  bool is_text = false;  ///< takes a string: an override need not be quoted, whatever it looks like
  /// Stores a value; false, and nothing stored, when it is not as `expected`.
  std::function<bool(RunConfig&, const ConfigValue&)> assign;
  /// The value in the syntax of TOML.
  std::function<std::string(const RunConfig&)> toml;
};

/// All fields, section by section, in the order in which they are written.
std::span<const ConfigField> run_config_fields();

const ConfigField* find_config_field(std::string_view name);  ///< null when there is none

/// "train" of "train.lr"; empty for a key above all sections.
std::string_view section_of(std::string_view name);
std::vector<std::string> config_sections();

/// A number that TOML reads back as the same floating-point number.
std::string number_to_toml(float value);
std::string number_to_toml(double value);

/// A TOML string with its quotes and escapes.
std::string quote_toml(std::string_view text);

}  // namespace quaver
