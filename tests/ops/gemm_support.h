/// What tests of matrix products share.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/fp8_format.h"

namespace quaver::testing {

enum class Values {
  plain,    ///< normal numbers; FP8: any finite byte
  tiny,     ///< BF16: products and sums around the smallest normal FP32 number, and denormal operands
  special,  ///< with infinities and NaN
};

struct Case {
  Gemm kind = Gemm::fprop;
  DType a = DType::bf16, b = DType::bf16, out = DType::f32;
  std::int64_t m = 1, n = 1, k = 1;
  bool bias = false, accumulate = false;
  Values values = Values::plain;
};

inline std::string describe(const Case& c) {
  return fmt::format("{} {} x {} -> {}, m {} n {} k {}, bias {}, accumulate {}, values {}", name_of(c.kind),
                     name_of(c.a), name_of(c.b), name_of(c.out), c.m, c.n, c.k, c.bias, c.accumulate,
                     static_cast<int>(c.values));
}

inline float tiny_value(const Random& random, std::uint64_t i) {
  return std::ldexp(random.normal(i),
                    -55 - static_cast<int>(random.below(i + 1, 20)) - (random.below(i + 2, 4) == 0 ? 60 : 0));
}

inline float real_value(const Random& random, std::uint64_t i, Values values) {
  constexpr float kSpecials[] = {std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity(),
                                 std::numeric_limits<float>::quiet_NaN(), -0.0f};
  if (values == Values::tiny) return tiny_value(random, i);
  if (values == Values::special && random.below(i + 1, 60) == 0) return kSpecials[random.below(i + 2, 4)];
  return random.normal(i);
}

inline std::uint8_t fp8_value(DType dtype, const Random& random, std::uint64_t i, Values values) {
  const auto byte = static_cast<std::uint8_t>(random.bits(i));
  const bool keep =
      std::isfinite(fp8_decode(dtype, byte)) || (values == Values::special && random.below(i + 1, 4) == 0);
  return keep ? byte : byte & 0xBF;  // without its highest exponent bit every byte is finite
}

/// A slice of columns at an odd offset of a wider matrix.
inline Tensor matrix(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                     std::uint64_t stream, Values values) {
  const Tensor wide = backend.allocate(dtype, {rows, cols + 4});
  const Random random(7, stream);
  for (std::int64_t i = 0; i < wide.elements(); ++i) {
    const auto counter = static_cast<std::uint64_t>(i) * 3;
    if (dtype == DType::f32) wide.data<float>()[i] = real_value(random, counter, values);
    if (dtype == DType::bf16) wide.data<bf16>()[i] = to_bf16(real_value(random, counter, values));
    if (is_fp8(dtype)) wide.data<std::uint8_t>()[i] = fp8_value(dtype, random, counter, values);
  }
  return wide.columns(3, cols);
}

inline Tensor scalar(Backend& backend, float value) {
  const Tensor tensor = backend.allocate(DType::f32, {1});
  *tensor.data<float>() = value;
  return tensor;
}

struct Inputs {
  GemmOperand a, b;
  Tensor bias;
};

inline Inputs inputs_of(Backend& backend, const Case& c, float scale_inv_a = 0.37f,
                        float scale_inv_b = 1.3f) {
  Inputs inputs;
  inputs.a.values = c.kind == Gemm::wgrad ? matrix(backend, c.a, c.k, c.m, 1, c.values)
                                          : matrix(backend, c.a, c.m, c.k, 1, c.values);
  inputs.b.values = c.kind == Gemm::fprop ? matrix(backend, c.b, c.n, c.k, 2, c.values)
                                          : matrix(backend, c.b, c.k, c.n, 2, c.values);
  if (is_fp8(c.a)) {
    inputs.a.scale_inv = scalar(backend, scale_inv_a);
    inputs.b.scale_inv = scalar(backend, scale_inv_b);
  }
  if (c.bias) {
    inputs.bias = backend.allocate(DType::f32, {c.n});
    for (std::int64_t n = 0; n < c.n; ++n)
      inputs.bias.data<float>()[n] = Random(7, 3).normal(static_cast<std::uint64_t>(n));
  }
  return inputs;
}

/// The result, every NaN made the same one: payloads differ between processors.
inline std::vector<std::uint32_t> product(Backend& backend, const Case& c, const Inputs& inputs) {
  const Tensor out = matrix(backend, c.out, c.m, c.n, 4, Values::plain);
  backend.gemm(c.kind, inputs.a, inputs.b, inputs.bias, c.accumulate, out);
  std::vector<std::uint32_t> bits;
  for (float value : download(backend, out)) {
    bits.push_back(std::isnan(value) ? 0x7FC00000u : std::bit_cast<std::uint32_t>(value));
  }
  return bits;
}

struct Types {
  DType a, b;
};
constexpr Types kExactTypes[] = {{DType::bf16, DType::bf16},
                                 {DType::e4m3, DType::e4m3},
                                 {DType::e5m2, DType::e4m3},
                                 {DType::e4m3, DType::e5m2}};
constexpr Gemm kKinds[] = {Gemm::fprop, Gemm::dgrad, Gemm::wgrad};

struct Size {
  std::int64_t m, n, k;
};
constexpr Size kOddSizes[] = {{1, 1, 1},  {1, 257, 33}, {3, 17, 33},  {17, 3, 1},    {8, 48, 2},
                              {9, 50, 7}, {33, 97, 64}, {65, 16, 31}, {97, 130, 17}, {66, 129, 35}};

/// Calls expect(case) for every kind of product, pair of types, odd size and result, some with bias and some accumulated.
template <typename Expect>
void for_all_kinds_types_and_odd_sizes(const Expect& expect) {
  int variant = 0;
  for (const Types& types : kExactTypes) {
    for (Gemm kind : kKinds) {
      for (const Size& size : kOddSizes) {
        for (DType out : {DType::f32, DType::bf16}) {
          ++variant;
          expect(Case{.kind = kind,
                      .a = types.a,
                      .b = types.b,
                      .out = out,
                      .m = size.m,
                      .n = size.n,
                      .k = size.k,
                      .bias = kind == Gemm::fprop && variant % 3 != 0,
                      .accumulate = variant % 5 < 2});
        }
      }
    }
  }
}

}  // namespace quaver::testing
