#include "quaver/tensor.h"

#include <bit>

#include "base/check.h"
#include "tensor/dtype_text.h"
#include "tensor/shape_text.h"

namespace quaver {

void fail_without_size(DType dtype) {
  fail(ErrorKind::usage, "tensor: {} has no size of its own: two elements share a byte", dtype);
}

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::e4m3:
      return "e4m3";
    case DType::e5m2:
      return "e5m2";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
    case DType::u8:
      return "u8";
    case DType::e2m1:
      return "e2m1";
    case DType::e8m0:
      return "e8m0";
  }
  return "unknown";
}

float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {0x7FC0};
  return {static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

Tensor::Tensor(std::shared_ptr<Storage> storage, DType dtype, Shape shape)
    : storage_(std::move(storage)), dtype_(dtype), shape_(std::move(shape)) {
  for (const auto extent : shape_)
    require(extent >= 0, "tensor: negative extent in shape {}", ShapeText{shape_});
  const auto needed = static_cast<std::size_t>(elements()) * size_of(dtype_);
  require(storage_->bytes() >= needed, "tensor: shape {} of {} needs {} bytes, the storage has {}",
          ShapeText{shape_}, dtype_, needed, storage_->bytes());
  if (shape_.size() == 2) row_stride_ = shape_[1];
}

bool Tensor::contiguous() const {
  return shape_.size() != 2 || row_stride_ == shape_[1] || shape_[0] <= 1;
}

Tensor Tensor::columns(std::int64_t begin, std::int64_t count) const {
  require(shape_.size() == 2 && begin >= 0 && count >= 0 && begin + count <= cols(),
          "tensor: columns [{}, {}) of shape {}", begin, begin + count, ShapeText{shape_});
  Tensor view = *this;
  view.offset_ += begin;
  view.shape_[1] = count;
  return view;
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t count) const {
  require(!shape_.empty() && begin >= 0 && count >= 0 && begin + count <= shape_[0],
          "tensor: rows [{}, {}) of shape {}", begin, begin + count, ShapeText{shape_});
  Tensor view = *this;
  const std::int64_t stride =
      shape_.size() == 2 ? row_stride_ : (shape_[0] == 0 ? 0 : elements() / shape_[0]);
  view.offset_ += begin * stride;
  view.shape_[0] = count;
  return view;
}

Tensor Tensor::reshape(Shape shape) const {
  require(contiguous() && element_count(shape) == elements(), "tensor: cannot view shape {}{} as {}",
          ShapeText{shape_}, contiguous() ? "" : " (strided)", ShapeText{shape});
  Tensor view = *this;
  view.shape_ = std::move(shape);
  view.row_stride_ = view.shape_.size() == 2 ? view.shape_[1] : 0;
  return view;
}

}  // namespace quaver
