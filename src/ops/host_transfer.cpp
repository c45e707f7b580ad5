#include <bit>
#include <cstring>

#include "base/check.h"
#include "quaver/backend.h"
#include "quaver/fp8_format.h"
#include "tensor/shape_text.h"

namespace quaver {
namespace {

void require_size(std::size_t found, const Shape& shape) {
  require(static_cast<std::int64_t>(found) == element_count(shape), "upload: {} values for shape {}", found,
          ShapeText{shape});
}

float element_to_float(DType dtype, const std::byte* address) {
  const auto load = [&]<typename T>(T value) {
    std::memcpy(&value, address, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::f32:
      return load(float{});
    case DType::bf16:
      return to_float(load(bf16{}));
    case DType::i32:
      return static_cast<float>(load(std::int32_t{}));
    case DType::e4m3:
    case DType::e5m2:
      return fp8_decode(dtype, load(std::uint8_t{}));
    default:
      fail(ErrorKind::usage, "download: cannot convert {} to float", name_of(dtype));
  }
}

}  // namespace

Tensor upload(Backend& backend, std::span<const float> values, Shape shape, DType dtype) {
  require_size(values.size(), shape);
  require(dtype == DType::f32 || dtype == DType::bf16, "upload: expected f32 or bf16, found {}",
          name_of(dtype));
  Tensor full = backend.allocate(DType::f32, shape);
  backend.copy_from_host(values.data(), full);
  if (dtype == DType::f32) return full;
  Tensor rounded = backend.allocate(dtype, std::move(shape));
  backend.convert(full, rounded);
  return rounded;
}

Tensor upload(Backend& backend, std::span<const std::int32_t> values, Shape shape) {
  require_size(values.size(), shape);
  Tensor tensor = backend.allocate(DType::i32, std::move(shape));
  backend.copy_from_host(values.data(), tensor);
  return tensor;
}

std::vector<float> download(Backend& backend, const Tensor& tensor) {
  Tensor source = tensor;
  if (!tensor.contiguous()) {
    source = backend.allocate(tensor.dtype(), tensor.shape());
    backend.copy(tensor, source);
  }
  const std::size_t width = size_of(tensor.dtype());
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.elements()) * width);
  backend.copy_to_host(source, bytes.data());
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = element_to_float(tensor.dtype(), &bytes[i * width]);
  return values;
}

}  // namespace quaver
