/// Throwing with a formatted message, and checking what a caller must guarantee.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "quaver/error.h"

namespace quaver {

template <typename... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws a usage error with the formatted message unless `condition` holds.
template <typename... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) fail(ErrorKind::usage, format, std::forward<Args>(args)...);
}

}  // namespace quaver
