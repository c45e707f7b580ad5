#include "quaver/shape.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "quaver/tensor.h"
#include "support/errors.h"

namespace quaver {
namespace {

/// Of every length around what fits in place; the last is far beyond it.
std::vector<Shape> shapes() {
  std::vector<std::int64_t> many(40);
  std::iota(many.begin(), many.end(), 1);
  return {{}, {7}, {7, 3}, {7, 3, 5}, {7, 3, 5, 2}, Shape(many)};
}

std::vector<std::int64_t> extents(const Shape& shape) {
  return {shape.begin(), shape.end()};
}

TEST(Shape, HoldsAnyNumberOfExtents) {
  const Shape none, matrix{4, 6}, cube{4, 6, 9};
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(none.begin(), none.end());
  EXPECT_EQ(extents(matrix), (std::vector<std::int64_t>{4, 6}));
  EXPECT_EQ(extents(cube), (std::vector<std::int64_t>{4, 6, 9}));
  EXPECT_EQ(cube.size(), 3u);
  EXPECT_EQ(cube[2], 9);
  EXPECT_EQ(cube.at(1), 6);
  EXPECT_EQ(cube.front(), 4);
}

TEST(Shape, EqualsTheSameExtentsAndNoOthers) {
  for (std::size_t i = 0; i < shapes().size(); ++i) {
    for (std::size_t j = 0; j < shapes().size(); ++j) EXPECT_EQ(shapes()[i] == shapes()[j], i == j);
    for (std::size_t axis = 0; axis < shapes()[i].size(); ++axis) {
      Shape other = shapes()[i];
      ++other[axis];
      EXPECT_NE(other, shapes()[i]) << "axis " << axis << " of " << to_string(other);
    }
  }
  EXPECT_NE((Shape{7, 0}), Shape{7});
}

TEST(Shape, CopiesAreIndependent) {
  for (const Shape& original : shapes()) {
    if (original.empty()) continue;
    Shape copy = original;
    EXPECT_EQ(copy, original);
    copy.front() = -1;
    EXPECT_EQ(original.front(), shapes().back() == original ? 1 : 7);
    EXPECT_EQ(copy.front(), -1);
  }
}

TEST(Shape, AssignmentReplacesEveryLengthByEveryOther) {
  for (const Shape& from : shapes()) {
    for (const Shape& to : shapes()) {
      Shape copied = to, moved = to;
      copied = from;
      EXPECT_EQ(copied, from);
      Shape source = from;
      moved = std::move(source);
      EXPECT_EQ(moved, from);
    }
    Shape same = from;
    const Shape& itself = same;
    same = itself;
    EXPECT_EQ(same, from);
  }
}

TEST(Shape, AMovedShapeIsEmpty) {
  for (const Shape& shape : shapes()) {
    Shape source = shape;
    const Shape target = std::move(source);
    EXPECT_EQ(target, shape);
    EXPECT_TRUE(source.empty());  // NOLINT(bugprone-use-after-move)
    source = {2, 2};
    EXPECT_EQ(source, (Shape{2, 2}));
  }
}

TEST(Shape, AnAxisBeyondTheLastIsAnError) {
  for (const Shape& shape : shapes()) {
    EXPECT_THROW(shape.at(shape.size()), std::out_of_range);
    EXPECT_THROW(shape.at(~std::size_t{0}), std::out_of_range);
  }
  try {
    Shape{3, 4}.at(2);
    FAIL();
  } catch (const std::out_of_range& error) {
    EXPECT_STREQ(error.what(), "axis 2 of a tensor of shape [3, 4]");
  }
}

TEST(Shape, CountsElementsAndReadsAsAList) {
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count({5, 0}), 0);
  EXPECT_EQ(element_count({5, 3, 2}), 30);
  EXPECT_EQ(to_string({}), "[]");
  EXPECT_EQ(to_string({5}), "[5]");
  EXPECT_EQ(to_string({5, 3, 2, 1}), "[5, 3, 2, 1]");
}

std::shared_ptr<Storage> storage(std::vector<std::byte>& memory, int& released) {
  return std::make_shared<Storage>(memory.data(), memory.size(), Device::host, [&released] { ++released; });
}

TEST(Tensor, ViewsMayHaveMoreExtentsThanFitInPlace) {
  std::vector<std::byte> memory(24 * sizeof(float));
  int released = 0;
  {
    const Tensor cube(storage(memory, released), DType::f32, {2, 3, 4});
    EXPECT_EQ(cube.dim(2), 4);
    EXPECT_THROW(static_cast<void>(cube.dim(3)), std::out_of_range);
    const Tensor second = cube.slice(1, 1);
    EXPECT_EQ(second.shape(), (Shape{1, 3, 4}));
    EXPECT_EQ(second.data<float>(), cube.data<float>() + 12);
    const Tensor matrix = cube.reshape({6, 4});
    EXPECT_EQ(matrix.row_stride(), 4);
    EXPECT_EQ(matrix.columns(1, 2).shape(), (Shape{6, 2}));
    EXPECT_EQ(matrix.reshape({2, 3, 2, 2}).shape(), (Shape{2, 3, 2, 2}));
    EXPECT_EQ(cube.shape(), (Shape{2, 3, 4})) << "views leave it as it is";
  }
  EXPECT_EQ(released, 1);
}

TEST(Tensor, RefusesShapesThatItsStorageDoesNotHold) {
  std::vector<std::byte> memory(24);
  int released = 0;
  const auto message = [&](const Shape& shape) {
    return error_message(ErrorKind::usage, [&] { Tensor(storage(memory, released), DType::f32, shape); });
  };
  EXPECT_EQ(message({7}), "tensor: shape [7] of f32 needs 28 bytes, the storage has 24");
  EXPECT_EQ(message({1, 7, 1}), "tensor: shape [1, 7, 1] of f32 needs 28 bytes, the storage has 24");
  EXPECT_EQ(message({3, -1}), "tensor: negative extent in shape [3, -1]");
}

}  // namespace
}  // namespace quaver
