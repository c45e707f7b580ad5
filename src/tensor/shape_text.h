/// A shape in a message, as [2, 3]: laid out only if the message is. Checks run hundreds of times a step.
#pragma once

#include <fmt/format.h>

#include "quaver/tensor.h"

namespace quaver {

/// Refers to a shape that outlives the message.
struct ShapeText {
  const Shape& shape;
};

}  // namespace quaver

template <>
struct fmt::formatter<quaver::ShapeText> : fmt::formatter<std::string_view> {
  auto format(const quaver::ShapeText& text, fmt::format_context& context) const {
    return fmt::format_to(context.out(), "[{}]", fmt::join(text.shape, ", "));
  }
};
