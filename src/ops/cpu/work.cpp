#include "ops/cpu/work.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace quaver::cpu {
namespace {

constexpr std::int64_t kPieceElements = std::int64_t{1} << 15;

std::int64_t blocks(std::int64_t size, std::int64_t block) {
  return (size + block - 1) / block;
}

std::int64_t offset_bytes(std::int64_t stride, const Piece& piece, Real real) {
  return (piece.row * stride + piece.col) * (real == Real::bf16 ? 2 : 4);
}

void transpose(const Tensor& bytes, const Tensor& transposed) {
  constexpr std::int64_t kBlock = 32;
  const auto* from = bytes.data<std::uint8_t>();
  auto* to = transposed.data<std::uint8_t>();
  for (std::int64_t row = 0; row < bytes.rows(); row += kBlock) {
    const std::int64_t row_end = std::min(bytes.rows(), row + kBlock);
    for (std::int64_t col = 0; col < bytes.cols(); ++col) {
      for (std::int64_t r = row; r < row_end; ++r) {
        to[col * transposed.row_stride() + r] = from[r * bytes.row_stride() + col];
      }
    }
  }
}

}  // namespace

Real real_of(const Tensor& tensor) {
  return tensor.dtype() == DType::bf16 ? Real::bf16 : Real::f32;
}

ConstRows const_rows(const Tensor& matrix) {
  return matrix.defined() ? ConstRows{matrix.raw(), matrix.row_stride()} : ConstRows{};
}

Rows rows_of(const Tensor& matrix) {
  return matrix.defined() ? Rows{matrix.raw(), matrix.row_stride()} : Rows{};
}

Pieces Pieces::of_rows(Extent matrix) {
  Pieces pieces;
  pieces.matrix_ = matrix;
  const std::int64_t rows = kPieceElements / std::max<std::int64_t>(1, matrix.cols);
  pieces.block_ = {std::max<std::int64_t>(1, rows), std::max<std::int64_t>(1, matrix.cols)};
  return pieces;
}

Pieces Pieces::of_elements(Extent matrix, std::initializer_list<const Tensor*> operands) {
  const auto fits = [](const Tensor* tensor) { return !tensor->defined() || tensor->contiguous(); };
  if (!std::all_of(operands.begin(), operands.end(), fits)) return of_rows(matrix);
  Pieces pieces;
  pieces.matrix_ = {1, matrix.rows * matrix.cols};
  pieces.block_ = {1, kPieceElements};
  return pieces;
}

std::int64_t Pieces::count() const {
  return blocks(matrix_.rows, block_.rows) * blocks(matrix_.cols, block_.cols);
}

Piece Pieces::at(std::int64_t index) const {
  // Either whole rows or parts of one row: only one of the two has several blocks.
  const std::int64_t per_row = blocks(matrix_.cols, block_.cols);
  const std::int64_t row = index / per_row * block_.rows;
  const std::int64_t col = index % per_row * block_.cols;
  const Extent extent{std::min(block_.rows, matrix_.rows - row), std::min(block_.cols, matrix_.cols - col)};
  return {index, row, col, extent};
}

ConstRows part(const ConstRows& rows, const Piece& piece, Real real) {
  if (rows.data == nullptr) return {};
  return {static_cast<const std::byte*>(rows.data) + offset_bytes(rows.stride, piece, real), rows.stride};
}

Rows part(const Rows& rows, const Piece& piece, Real real) {
  if (rows.data == nullptr) return {};
  return {static_cast<std::byte*>(rows.data) + offset_bytes(rows.stride, piece, real), rows.stride};
}

Production::Production(const Output& output, std::int64_t pieces)
    : output_(output), values_(rows_of(output.values)) {
  if (!output.quantized.defined()) return;
  bytes_ = output.quantized.bytes.data<std::uint8_t>();
  scale_ = *output.quantizer.scale.data<float>();
  counts_.resize(pieces);
}

ProducerRows Production::at(const Piece& piece, Real real) {
  ProducerRows rows;
  const Rows values = part(values_, piece, real);
  rows.values = values.data;
  rows.values_stride = values.stride;
  if (bytes_ == nullptr) return rows;
  rows.bytes_stride = output_.quantized.bytes.row_stride();
  rows.bytes = bytes_ + piece.row * rows.bytes_stride + piece.col;
  rows.e5m2 = output_.quantizer.format == DType::e5m2;
  rows.scale = scale_;
  rows.counts = &counts_[piece.index];
  rows.streams = output_.quantized.bytes.elements() >= kStreamedBytes;
  return rows;
}

void Production::finish() {
  if (bytes_ == nullptr) return;
  CastCounts total;
  for (const CastCounts& counts : counts_) {
    total.amax_bits = std::max(total.amax_bits, counts.amax_bits);
    total.saturated += counts.saturated;
    total.underflowed += counts.underflowed;
    total.nan += counts.nan;
    total.infinite += counts.infinite;
    total.zeros += counts.zeros;
  }
  const Quantizer& quantizer = output_.quantizer;
  const QuantizedTensor& quantized = output_.quantized;
  if (quantizer.amax.defined()) {
    float& staged = *quantizer.amax.data<float>();
    staged = std::fmax(staged, std::bit_cast<float>(total.amax_bits));
  }
  if (quantizer.counters.defined()) {
    auto* counters = quantizer.counters.data<std::int64_t>();
    counters[kCastElements] += quantized.bytes.elements();
    counters[kCastSaturated] += total.saturated;
    counters[kCastUnderflowed] += total.underflowed;
    counters[kCastNan] += total.nan;
    counters[kCastInfinite] += total.infinite;
    counters[kCastZeros] += total.zeros;
  }
  *quantized.scale_inv.data<float>() = 1.0f / scale_;
  if (quantized.transposed.defined()) transpose(quantized.bytes, quantized.transposed);
}

}  // namespace quaver::cpu
