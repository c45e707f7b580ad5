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

// Its body is compiled once: it instantiates all of fmt's writing of numbers, half of a file's compile time.
template <>
struct fmt::formatter<quaver::ShapeText> : fmt::formatter<std::string_view> {
  fmt::appender format(const quaver::ShapeText& text, fmt::format_context& context) const;
};
