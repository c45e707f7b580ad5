/// Patterns over names.
#pragma once

#include <string_view>

namespace quaver {

/// Whether `pattern` covers all of `text`. `*`: any characters, none included; `?`: one character; `{a,b}`: either, nested
/// at will. Every other character stands for itself. Takes time proportional to both lengths. Throws Error(usage) for braces
/// that do not pair.
bool glob_matches(std::string_view pattern, std::string_view text);

}  // namespace quaver
