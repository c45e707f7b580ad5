/// The extents of a tensor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

namespace quaver {

/// A sequence of extents of fixed length, read and compared like a vector of them. Up to kInPlace need no memory of their
/// own: nearly all tensors are vectors and matrices, and a training step makes thousands of shapes.
class Shape {
 public:
  using value_type = std::int64_t;
  using iterator = std::int64_t*;
  using const_iterator = const std::int64_t*;
  static constexpr std::size_t kInPlace = 2;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const std::int64_t> extents) : size_(extents.size()) {
    if (size_ > kInPlace) extents_.many = new std::int64_t[size_];
    std::copy(extents.begin(), extents.end(), begin());
  }
  Shape(const Shape& other) : size_(other.size_), extents_(other.extents_) {
    if (size_ > kInPlace) copy_many();
  }
  Shape(Shape&& other) noexcept : size_(std::exchange(other.size_, 0)), extents_(other.extents_) {}
  Shape& operator=(const Shape& other) { return *this = Shape(other); }
  Shape& operator=(Shape&& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(extents_, other.extents_);
    return *this;
  }
  ~Shape() {
    if (size_ > kInPlace) delete[] extents_.many;
  }

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const std::int64_t* data() const { return size_ > kInPlace ? extents_.many : extents_.few; }
  std::int64_t* data() { return size_ > kInPlace ? extents_.many : extents_.few; }
  const_iterator begin() const { return data(); }
  const_iterator end() const { return data() + size_; }
  iterator begin() { return data(); }
  iterator end() { return data() + size_; }

  std::int64_t operator[](std::size_t axis) const { return data()[axis]; }
  std::int64_t& operator[](std::size_t axis) { return data()[axis]; }
  std::int64_t front() const { return data()[0]; }
  std::int64_t& front() { return data()[0]; }
  /// Throws std::out_of_range for an axis that the shape does not have.
  std::int64_t at(std::size_t axis) const {
    if (axis >= size_) fail_axis(axis);
    return data()[axis];
  }

  friend bool operator==(const Shape& a, const Shape& b) {
    return a.size_ == b.size_ && std::equal(a.begin(), a.end(), b.begin());
  }

 private:
  union Extents {
    std::int64_t few[kInPlace];
    std::int64_t* many;  // of shapes with more
  };

  void copy_many();
  [[noreturn]] void fail_axis(std::size_t axis) const;

  std::size_t size_ = 0;
  Extents extents_{};
};

inline std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}
/// "[2, 3]"
std::string to_string(const Shape& shape);

}  // namespace quaver
