/// What cuBLASLt needs to know of one kind of product, and the algorithm that was chosen for it.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <optional>

#include "ops/cuda/device/cublas_loader.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/product.h"

namespace quaver::cuda {

inline cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::e4m3:
      return CUDA_R_8F_E4M3;
    case DType::e5m2:
      return CUDA_R_8F_E5M2;
    default:
      return CUDA_R_32F;
  }
}

/// The largest power of two, up to 256, that divides an address.
inline unsigned alignment_of(const void* address) {
  const auto bits = reinterpret_cast<std::uintptr_t>(address) | 256;
  return static_cast<unsigned>(bits & (~bits + 1));
}

/// Everything a plan depends on.
struct PlanKey {
  std::int64_t m, n, k, left_stride, right_stride, out_stride;
  DType left, right, out;
  bool left_swapped, right_swapped, fast, accumulate;
  unsigned left_alignment, right_alignment, out_alignment;
  FactorScales left_scales, right_scales;
  std::int64_t left_scale_stride, right_scale_stride;
  auto operator<=>(const PlanKey&) const = default;
};

inline PlanKey key_of(const Product& p) {
  return {p.size.m,
          p.size.n,
          p.size.k,
          p.left.stride,
          p.right.stride,
          p.out_stride,
          p.left.dtype,
          p.right.dtype,
          p.out_dtype,
          p.left.swapped,
          p.right.swapped,
          p.fast_accumulation,
          p.accumulate,
          alignment_of(p.left.data),
          alignment_of(p.right.data),
          alignment_of(p.out),
          p.left.scales,
          p.right.scales,
          p.left.scale_stride,
          p.right.scale_stride};
}

/// For which elements of an FP8 factor a scale is meant.
inline cublasLtMatmulMatrixScale_t scale_mode_of(const Factor& factor) {
  switch (factor.scales) {
    case FactorScales::rows:
      return CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    case FactorScales::squares:
      return CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    case FactorScales::mx:
      return CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
    default:
      return CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  }
}

/// cuBLASLt's matrices are column-major: our row-major result is its transpose, the right operand its A and
/// the left its B.
class Plan {
 public:
  /// `units`: as `with_unit_scales` takes them, for a product with one scale per tensor that is to run in blocks; alpha and beta then
  /// lie on the device.
  Plan(const CublasFunctions& lt, const Product& product, const void* units = nullptr)
      : unit_scales(units), lt_(lt) {
    const Product p = form_of(product);
    lt.create_matmul(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.right.swapped ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.left.swapped ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (is_fp8(p.left.dtype)) {
      set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<std::int8_t>(p.fast_accumulation));
      // Libraries before 12.8 do not know the attribute.
      if (is_in_blocks(p)) {
        set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, scale_mode_of(p.right));
        set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, scale_mode_of(p.left));
      }
      if (units) set(CUBLASLT_MATMUL_DESC_POINTER_MODE, CUBLASLT_POINTER_MODE_DEVICE);
      set_scales(product);
    }
    a = layout(p.right, p.size.n, p.size.k);
    b = layout(p.left, p.size.m, p.size.k);
    lt.create_layout(&out, type_of(p.out_dtype), static_cast<std::uint64_t>(p.size.n),
                     static_cast<std::uint64_t>(p.size.m), p.out_stride);
  }
  ~Plan() {
    for (cublasLtMatrixLayout_t matrix : {a, b, out}) lt_.destroy_layout(matrix);
    lt_.destroy_matmul(matmul);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  void set_scales(const Product& product) {
    if (!is_fp8(product.left.dtype)) return;
    const Product p = form_of(product);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.right.scale_inv);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.left.scale_inv);
  }

  cublasLtMatmulDesc_t matmul = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, out = nullptr;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  ///< none: the library cannot compute this
  const void* const unit_scales;                  ///< null: the product runs as it stands

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    lt_.set_matmul(matmul, attribute, &value, sizeof value);
  }
  Product form_of(const Product& product) const {
    return unit_scales ? with_unit_scales(product, unit_scales) : product;
  }
  cublasLtMatrixLayout_t layout(const Factor& factor, std::int64_t rows, std::int64_t contraction) {
    cublasLtMatrixLayout_t result = nullptr;
    const auto inner = static_cast<std::uint64_t>(factor.swapped ? rows : contraction);
    const auto outer = static_cast<std::uint64_t>(factor.swapped ? contraction : rows);
    lt_.create_layout(&result, type_of(factor.dtype), inner, outer, factor.stride);
    return result;
  }

  const CublasFunctions& lt_;
};

}  // namespace quaver::cuda
