#include "quaver/shape.h"

#include <stdexcept>

#include "tensor/shape_text.h"

namespace quaver {

void Shape::copy_many() {
  const std::int64_t* const others = extents_.many;
  extents_.many = new std::int64_t[size_];
  std::copy_n(others, size_, extents_.many);
}

void Shape::fail_axis(std::size_t axis) const {
  throw std::out_of_range(fmt::format("axis {} of a tensor of shape {}", axis, ShapeText{*this}));
}

std::string to_string(const Shape& shape) {
  return fmt::format("{}", ShapeText{shape});
}

}  // namespace quaver
