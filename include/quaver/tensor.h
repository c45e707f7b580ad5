/// Element types, and views onto device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "quaver/shape.h"

namespace quaver {

/// Element types. `e4m3` (the finite variant) and `e5m2` are the FP8 formats of the OCP 8-bit floating point
/// specification; `e2m1` and `e8m0` (powers of two, for scales) those of the OCP microscaling specification. Tensors of
/// e2m1 do not exist: two such numbers share a byte of a u8 tensor (QuantizedTensor in scaling.h).
enum class DType : std::uint8_t { f32, bf16, e4m3, e5m2, i32, i64, u8, e2m1, e8m0 };

[[noreturn]] void fail_without_size(DType dtype);
/// Bytes of an element. Throws for e2m1.
inline std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::i64:
      return 8;
    case DType::e4m3:
    case DType::e5m2:
    case DType::u8:
    case DType::e8m0:
      return 1;
    case DType::e2m1:
      break;
  }
  fail_without_size(dtype);
}
/// "f32", "bf16", "e4m3", ...
std::string_view name_of(DType dtype);
inline bool is_fp8(DType dtype) {
  return dtype == DType::e4m3 || dtype == DType::e5m2;
}
/// Types of GEMM operands that a recipe made: FP8 or FP4.
inline bool is_quantized(DType dtype) {
  return is_fp8(dtype) || dtype == DType::e2m1;
}

/// The upper half of an FP32 number. Conversion from FP32 rounds to nearest, ties to even, keeps denormals,
/// and maps every NaN to 0x7FC0 (NaN payloads differ between processors).
struct bf16 {
  std::uint16_t bits = 0;
};
float to_float(bf16 value);
bf16 to_bf16(float value);

/// Where memory lies.
enum class Device : std::uint8_t { host, cuda };

/// Owns a block of device memory; `release`, or the destructor of a derived class, gives it back to whoever allocated it.
class Storage {
 public:
  Storage(void* data, std::size_t bytes, Device device, std::function<void()> release)
      : Storage(data, bytes, device) {
    release_ = std::move(release);
  }
  virtual ~Storage() {
    if (release_) release_();
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 protected:
  Storage(void* data, std::size_t bytes, Device device) : data_(data), bytes_(bytes), device_(device) {}

 private:
  void* data_;
  std::size_t bytes_;
  Device device_;
  std::function<void()> release_;
};

/// A view onto a storage, which it keeps alive: copies of a Tensor refer to the same elements.
///
/// The last dimension is contiguous. A matrix may have a row stride larger than its width (a slice of
/// columns); tensors of any other rank are contiguous. A default-constructed Tensor is *absent*: the way to
/// say that an optional operand is not there.
class Tensor {
 public:
  Tensor() = default;
  /// A contiguous view of `shape` at the start of `storage`.
  Tensor(std::shared_ptr<Storage> storage, DType dtype, Shape shape);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t dim(std::size_t axis) const { return shape_.at(axis); }
  std::int64_t elements() const { return element_count(shape_); }
  Device device() const { return storage_->device(); }
  bool contiguous() const;

  /// Of a matrix: rows, columns, and the distance between rows in elements.
  std::int64_t rows() const { return shape_.at(0); }
  std::int64_t cols() const { return shape_.at(1); }
  std::int64_t row_stride() const { return row_stride_; }

  /// Columns [begin, begin + count) of a matrix, sharing its memory.
  Tensor columns(std::int64_t begin, std::int64_t count) const;
  /// Rows [begin, begin + count) along the first axis, sharing memory.
  Tensor slice(std::int64_t begin, std::int64_t count) const;
  /// The same elements of a contiguous tensor under another shape.
  Tensor reshape(Shape shape) const;

  /// The address of the first element, in the memory of `device()`. Only backends and host-side input/output
  /// use it.
  void* raw() const { return storage_->data() + offset_ * size_of(dtype_); }
  template <typename T>
  T* data() const {
    return static_cast<T*>(raw());
  }

 private:
  std::shared_ptr<Storage> storage_;
  std::int64_t offset_ = 0;  // in elements
  DType dtype_ = DType::f32;
  Shape shape_;
  std::int64_t row_stride_ = 0;  // of matrices
};

}  // namespace quaver
