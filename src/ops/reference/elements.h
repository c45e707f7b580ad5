/// Scalar access to real matrices, and the store of producers.
#pragma once

#include <cmath>
#include <cstdint>

#include "quaver/fp8_format.h"
#include "quaver/scaling.h"
#include "quaver/tensor.h"

namespace quaver::reference {

/// A real matrix read and written as FP32; a store rounds once to the matrix's type.
class RealMatrix {
 public:
  explicit RealMatrix(const Tensor& tensor) : tensor_(tensor) {}
  float operator()(std::int64_t m, std::int64_t n) const {
    const std::int64_t index = m * tensor_.row_stride() + n;
    return tensor_.dtype() == DType::f32 ? tensor_.data<float>()[index]
                                         : to_float(tensor_.data<bf16>()[index]);
  }
  void set(std::int64_t m, std::int64_t n, float value) const {
    const std::int64_t index = m * tensor_.row_stride() + n;
    if (tensor_.dtype() == DType::f32) {
      tensor_.data<float>()[index] = value;
    } else {
      tensor_.data<bf16>()[index] = to_bf16(value);
    }
  }

 private:
  Tensor tensor_;
};

inline float round_to(DType real, float value) {
  return real == DType::f32 ? value : to_float(to_bf16(value));
}

/// Stores the elements of an Output one by one; the destructor writes scale_inv and adds amax and counts.
class Producer {
 public:
  /// `real` is the type the result is rounded to before it is cast.
  Producer(const Output& output, DType real) : output_(output), real_(real) {}
  Producer(const Producer&) = delete;
  Producer& operator=(const Producer&) = delete;

  void store(std::int64_t m, std::int64_t n, float result) {
    const float x = round_to(real_, result);
    if (output_.values) RealMatrix(output_.values).set(m, n, x);
    if (output_.quantized.defined()) quantize(m, n, x);
  }

  ~Producer() {
    if (!output_.quantized.defined()) return;
    *output_.quantized.scale_inv.data<float>() = 1.0f / scale();
    if (output_.quantizer.amax) {
      float& staged = *output_.quantizer.amax.data<float>();
      staged = std::fmax(staged, amax_);
    }
    if (!output_.quantizer.counters) return;
    for (int i = 0; i < kCastCounters; ++i) output_.quantizer.counters.data<std::int64_t>()[i] += counts_[i];
  }

 private:
  float scale() const { return *output_.quantizer.scale.data<float>(); }

  void quantize(std::int64_t m, std::int64_t n, float x) {
    const DType format = output_.quantizer.format;
    const float scaled = x * scale();
    const std::uint8_t byte = fp8_encode(format, scaled);
    const QuantizedTensor& q = output_.quantized;
    q.bytes.data<std::uint8_t>()[m * q.bytes.row_stride() + n] = byte;
    if (q.transposed) q.transposed.data<std::uint8_t>()[n * q.transposed.row_stride() + m] = byte;

    // A comparison with NaN is false; fmax would take a signalling one.
    if (const float magnitude = std::fabs(x); magnitude > amax_) amax_ = magnitude;
    ++counts_[kCastElements];
    counts_[kCastSaturated] += std::fabs(scaled) > fp8_max(format);
    counts_[kCastUnderflowed] += x != 0 && (byte & 0x7F) == 0;
    counts_[kCastNan] += std::isnan(x);
    counts_[kCastInfinite] += std::isinf(x);
    counts_[kCastZeros] += x == 0;
  }

  const Output& output_;
  DType real_;
  float amax_ = 0;
  std::int64_t counts_[kCastCounters] = {};
};

}  // namespace quaver::reference
