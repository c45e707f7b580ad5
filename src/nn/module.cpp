#include "quaver/module.h"

#include "quaver/backend.h"

namespace quaver {

Parameter::Parameter(Backend& backend, Shape shape)
    : value(backend.allocate(DType::f32, shape)), gradient(backend.allocate(DType::f32, std::move(shape))) {}

const Tensor& Parameter::accumulated_gradient(Backend& backend) {
  if (!begin_accumulation()) backend.fill(gradient, 0);
  return gradient;
}

bool Parameter::begin_accumulation() {
  const bool had_gradient = has_gradient;
  has_gradient = true;
  return had_gradient;
}

std::string join_names(const std::string& parent, const std::string& child) {
  return parent.empty() ? child : parent + "." + child;
}

}  // namespace quaver
