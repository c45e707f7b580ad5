/// The casts of recipes behind a C interface, so that Python can compare them with numpy and ml_dtypes.
#include <cstring>

#include "quaver/backend.h"
#include "train/fp8_recipes.h"

using namespace quaver;

/// Casts x [rows, cols] as the operand `role` of the GEMM `gemm`. codes: one byte an element, also of e2m1. scales: those of
/// blocks as stored. tensor_scale_inv: 1 if there is none.
extern "C" void quaver_recipe_cast(const char* backend_name, const char* recipe, int role, int gemm,
                                   const float* x, std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                                   std::uint8_t* codes, std::uint8_t* scales, float* tensor_scale_inv,
                                   float* values) {
  const auto backend = make_backend(backend_name, 2);
  const OperandCast cast =
      cast_of(make_recipe(recipe, Fp8Config{}), static_cast<OperandRole>(role), static_cast<Gemm>(gemm));
  const Tensor input = upload(*backend, {x, static_cast<std::size_t>(rows * cols)}, {rows, cols});
  const QuantizedTensor q = allocate_quantized(*backend, cast, rows, cols);
  backend->quantize(input, cast, {seed, 5}, {}, q);
  const auto* bytes = q.bytes.data<std::uint8_t>();
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < cols; ++n) {
      const std::uint8_t byte = bytes[m * q.bytes.cols() + (q.e2m1_cols > 0 ? n / 2 : n)];
      codes[m * cols + n] = q.e2m1_cols == 0 ? byte : n % 2 == 0 ? byte & 0xF : byte >> 4;
    }
  }
  if (q.blocks.scale_inv) {
    const Tensor& s = q.blocks.scale_inv;
    std::memcpy(scales, s.raw(), static_cast<std::size_t>(s.elements()) * size_of(s.dtype()));
  }
  *tensor_scale_inv = q.scale_inv ? *q.scale_inv.data<float>() : 1.0f;
  const Tensor wide = backend->allocate(DType::bf16, {rows, cols});
  backend->dequantize(q, wide);
  const auto floats = download(*backend, wide);
  std::memcpy(values, floats.data(), floats.size() * sizeof(float));
}
