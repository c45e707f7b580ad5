#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/contracts.h"
#include "ops/host_operands.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

/// The elements of an operand as FP32, before scaling. BF16 denormals count as zero of their sign.
class Elements {
 public:
  explicit Elements(const Tensor& tensor) : tensor_(tensor) {
    if (!is_fp8(tensor.dtype())) return;
    for (int byte = 0; byte < 256; ++byte)
      decoded_[byte] = fp8_decode(tensor.dtype(), static_cast<std::uint8_t>(byte));
  }
  float operator()(std::int64_t row, std::int64_t col) const {
    if (is_fp8(tensor_.dtype()))
      return decoded_[tensor_.data<std::uint8_t>()[row * tensor_.row_stride() + col]];
    return reference::RealMatrix(tensor_)(row, col);
  }

 private:
  Tensor tensor_;
  std::array<float, 256> decoded_{};
};

float flush_denormal(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

/// a * b + sum as the BF16 dot-product instructions compute it: rounded once to 24 bits, and zero of its sign
/// when the rounded result lies below the smallest normal number. Double holds it exactly as far as the
/// rounding to FP32 depends on it.
float flushed_multiply_add(float a, float b, float sum) {
  constexpr double kRoundsToNormal = 0x1p-126 - 0x1p-151;
  const double exact = static_cast<double>(a) * b + sum;
  return static_cast<float>(std::fabs(exact) < kRoundsToNormal ? std::copysign(0.0, exact) : exact);
}

/// The same sum as Intel's TDPBF16PS makes it: 32 products at a time, the even and the odd ones summed apart from zero; the
/// sum of both is added to the accumulator. The last 32 are filled up with zeros.
template <typename A, typename B>
float dot_of_matrix_unit(std::int64_t length, const A& a, const B& b) {
  constexpr std::int64_t kProducts = 32;
  const auto at = [&](const auto& x, std::int64_t k) { return k < length ? flush_denormal(x(k)) : 0.0f; };
  float sum = 0;
  for (std::int64_t begin = 0; begin < length; begin += kProducts) {
    float parts[2] = {};
    for (std::int64_t k = begin; k < begin + kProducts; ++k)
      parts[k % 2] = flushed_multiply_add(at(a, k), at(b, k), parts[k % 2]);
    sum = flush_denormal(sum + flush_denormal(parts[0] + parts[1]));
  }
  return sum;
}

/// sum of a[k] * b[k], k ascending, one FP32 accumulator.
template <typename A, typename B>
float dot(DType dtype, std::int64_t length, const A& a, const B& b) {
  float sum = 0;
  if (dtype != DType::bf16) {
    for (std::int64_t k = 0; k < length; ++k) sum += a(k) * b(k);
    return sum;
  }
  for (std::int64_t k = 0; k < length; ++k)
    sum = flushed_multiply_add(flush_denormal(a(k)), flush_denormal(b(k)), sum);
  return length % 2 == 1 ? sum + 0.0f : sum;
}

}  // namespace

void ReferenceBackend::gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                            bool accumulate, const Tensor& out) {
  const GemmSize size = check_gemm(kind, a, b, bias, out, OperandForms::any);
  const ProductOperands operands = product_operands(*this, a, b);
  const Elements a_of(operands.a), b_of(operands.b);
  const reference::RealMatrix result(out);
  constexpr std::int64_t kFewRows = 4;  // the CPU backend reads the weights of so few rows where they stand
  const bool by_unit = products_ == Products::fast && operands.a.dtype() != DType::f32 &&
                       !(kind == Gemm::fprop && size.m <= kFewRows);
  for (std::int64_t m = 0; m < size.m; ++m) {
    for (std::int64_t n = 0; n < size.n; ++n) {
      const auto a_at = [&](std::int64_t k) { return kind == Gemm::wgrad ? a_of(k, m) : a_of(m, k); };
      const auto b_at = [&](std::int64_t k) { return kind == Gemm::fprop ? b_of(n, k) : b_of(k, n); };
      float value =
          by_unit ? dot_of_matrix_unit(size.k, a_at, b_at) : dot(operands.a.dtype(), size.k, a_at, b_at);
      if (operands.scale) value *= *operands.scale;
      if (bias) value += bias.data<float>()[n];
      if (accumulate) value += result(m, n);
      result.set(m, n, value);
    }
  }
}

void ReferenceBackend::sum_rows(const Tensor& x, const Tensor& sums) {
  check_sum_rows(x, sums);
  const reference::RealMatrix in(x);
  for (std::int64_t n = 0; n < x.cols(); ++n) {
    float sum = 0;
    for (std::int64_t m = 0; m < x.rows(); ++m) sum += in(m, n);
    sums.data<float>()[n] += sum;
  }
}

}  // namespace quaver
