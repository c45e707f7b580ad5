/// Checks of single operands, of which the contracts of operations (contracts.cpp) are made.
#pragma once

#include <string_view>
#include <tuple>

#include "base/check.h"
#include "ops/contracts.h"
#include "quaver/backend.h"
#include "tensor/dtype_text.h"
#include "tensor/shape_text.h"

namespace quaver {

inline bool is_real(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16;
}

/// Checks the operands of one operation, so that messages begin with its name.
class Operands {
 public:
  explicit Operands(std::string_view operation) : operation_(operation) {}

  void expect(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) const {
    require(tensor.defined(), "{}: operand {} is absent", operation_, name);
    require(tensor.dtype() == dtype, "{}: {} has type {}, expected {}", operation_, name, tensor.dtype(),
            dtype);
    require(tensor.shape() == shape, "{}: {} has shape {}, expected {}", operation_, name,
            ShapeText{tensor.shape()}, ShapeText{shape});
  }
  void expect_contiguous(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) const {
    expect(tensor, name, dtype, shape);
    require(tensor.contiguous(), "{}: {} must be contiguous", operation_, name);
  }
  void expect_optional(const Tensor& tensor, const char* name, DType dtype, const Shape& shape) const {
    if (tensor) expect_contiguous(tensor, name, dtype, shape);
  }
  void expect_absent(const Tensor& tensor, const char* name) const {
    require(!tensor.defined(), "{}: operand {} must be absent", operation_, name);
  }
  void expect_real_matrix(const Tensor& tensor, const char* name) const {
    require(tensor.defined(), "{}: operand {} is absent", operation_, name);
    require(is_real(tensor.dtype()), "{}: {} has type {}, expected f32 or bf16", operation_, name,
            tensor.dtype());
    require(tensor.shape().size() == 2, "{}: {} has shape {}, expected a matrix", operation_, name,
            ShapeText{tensor.shape()});
  }
  /// A contiguous matrix of that type and any number of rows.
  void expect_table(const Tensor& tensor, const char* name, DType dtype, std::int64_t cols) const {
    expect_real_matrix(tensor, name);
    expect_contiguous(tensor, name, dtype, {tensor.rows(), cols});
  }
  void expect_moments(const AdamWTensor& tensor) const {
    require(tensor.m.defined(), "{}: operand m is absent", operation_);
    const DType type = tensor.m.dtype();
    const bool coded = type == DType::e4m3;
    require(is_real(type) || coded, "{}: m has type {}, expected f32, bf16 or e4m3", operation_, type);
    const std::int64_t blocks = (tensor.value.elements() + kMomentBlock - 1) / kMomentBlock;
    for (const auto& [moment, name, scales, scales_name] :
         {std::tie(tensor.m, "m", tensor.m_scales, "m_scales"),
          std::tie(tensor.v, "v", tensor.v_scales, "v_scales")}) {
      expect_contiguous(moment, name, type, tensor.value.shape());
      if (coded) {
        expect_contiguous(scales, scales_name, DType::f32, {blocks});
      } else {
        expect_absent(scales, scales_name);
      }
    }
  }
  /// An Output of the shape of x, whose high-precision part has x's type.
  void expect_output(const Output& output, const char* name, DType dtype, const Shape& shape) const {
    require(is_wanted(output), "{}: output {} asks for nothing", operation_, name);
    if (output.values) expect(output.values, name, dtype, shape);
    if (output.quantized.defined()) expect_fp8(output.quantized, output.quantizer, name, shape);
  }
  void expect_fp8(const QuantizedTensor& quantized, const Quantizer& quantizer, const char* name,
                  const Shape& shape) const {
    const DType format = quantizer.format;
    require(is_fp8(format), "{}: {} is to be cast to {}, expected e4m3 or e5m2", operation_, name, format);
    expect(quantized.bytes, name, format, shape);
    expect_cast(quantized, quantizer, name, shape);
  }
  /// A result of forward that a backward writes again, or nothing; its transposed bytes alone if the backend has them so.
  void expect_output_again(const Output& output, const char* name, DType dtype, const Shape& shape,
                           bool transposed_alone) const {
    if (!is_wanted(output)) return;
    if (output.quantized.bytes || !transposed_alone) return expect_output(output, name, dtype, shape);
    if (output.values) expect(output.values, name, dtype, shape);
    if (output.quantized.defined()) expect_cast(output.quantized, output.quantizer, name, shape);
  }

 private:
  void expect_cast(const QuantizedTensor& quantized, const Quantizer& quantizer, const char* name,
                   const Shape& shape) const {
    if (quantized.transposed) expect(quantized.transposed, name, quantizer.format, {shape[1], shape[0]});
    expect(quantized.scale_inv, "scale_inv", DType::f32, {1});
    expect(quantizer.scale, "scale", DType::f32, {1});
    expect_optional(quantizer.amax, "amax", DType::f32, {1});
    expect_optional(quantizer.counters, "counters", DType::i64, {kCastCounters});
  }

  std::string_view operation_;
};

}  // namespace quaver
