/// A type in a message, by its name: looked up only if the message is laid out. Checks run hundreds of times a step.
#pragma once

#include <fmt/format.h>

#include "quaver/tensor.h"

template <>
struct fmt::formatter<quaver::DType> : fmt::formatter<std::string_view> {
  auto format(quaver::DType dtype, fmt::format_context& context) const {
    return fmt::formatter<std::string_view>::format(quaver::name_of(dtype), context);
  }
};
