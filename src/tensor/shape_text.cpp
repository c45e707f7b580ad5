#include "tensor/shape_text.h"

fmt::appender fmt::formatter<quaver::ShapeText>::format(const quaver::ShapeText& text,
                                                        fmt::format_context& context) const {
  return fmt::format_to(context.out(), "[{}]", fmt::join(text.shape, ", "));
}
