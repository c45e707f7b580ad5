#include <array>
#include <cmath>
#include <vector>

#include "fp8/current_scaling.h"
#include "ops/block_scale.h"
#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/noise.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

/// The matrix in FP32.
struct Values {
  std::int64_t rows, cols;
  std::vector<float> data;
  float& operator()(std::int64_t m, std::int64_t n) { return data[static_cast<std::size_t>(m * cols + n)]; }
};

Values values_of(const Tensor& x) {
  Values values{x.rows(), x.cols(), {}};
  const reference::RealMatrix in(x);
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    for (std::int64_t n = 0; n < x.cols(); ++n) values.data.push_back(in(m, n));
  }
  return values;
}

void turn_by_hadamard(Values& x, const CastNoise& noise) {
  const std::uint16_t signs = hadamard_signs(noise);
  for (std::int64_t first = 0; first + kHadamardRows <= x.rows; first += kHadamardRows) {
    for (std::int64_t n = 0; n < x.cols; ++n) {
      std::array<float, kHadamardRows> v;
      for (int i = 0; i < kHadamardRows; ++i) v[i] = signs >> i & 1 ? -x(first + i, n) : x(first + i, n);
      for (int apart = 1; apart < kHadamardRows; apart *= 2) {
        for (int i = 0; i < kHadamardRows; ++i) {
          if (i & apart) continue;
          const float a = v[i], b = v[i + apart];
          v[i] = a + b;
          v[i + apart] = a - b;
        }
      }
      for (int i = 0; i < kHadamardRows; ++i) x(first + i, n) = v[i] * 0.25f;
    }
  }
}

struct BlockStatistics {
  float amax = 0;
  bool nan = false;
  void add(float x) {
    amax = std::fmax(amax, std::fabs(x));  // fmax ignores NaN
    nan = nan || std::isnan(x);
  }
};

void store_code(const QuantizedTensor& out, std::int64_t m, std::int64_t n, std::uint8_t code) {
  if (out.e2m1_cols == 0) {
    out.bytes.data<std::uint8_t>()[m * out.bytes.row_stride() + n] = code;
    return;
  }
  std::uint8_t& pair = out.bytes.data<std::uint8_t>()[m * out.bytes.row_stride() + n / 2];
  pair = n % 2 == 0 ? code : static_cast<std::uint8_t>(pair | code << 4);
}

std::uint8_t load_code(const QuantizedTensor& q, std::int64_t m, std::int64_t n) {
  const std::int64_t column = q.e2m1_cols > 0 ? n / 2 : n;
  const std::uint8_t byte = q.bytes.data<std::uint8_t>()[m * q.bytes.row_stride() + column];
  return q.e2m1_cols == 0 ? byte : n % 2 == 0 ? byte & 0xF : byte >> 4;
}

}  // namespace

void ReferenceBackend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                                const Tensor& counters, const QuantizedTensor& out) {
  check_quantize(x, cast, counters, out);
  Values values = values_of(x);
  if (cast.hadamard) turn_by_hadamard(values, noise);

  const float largest = fp8_max(cast.format);
  BlockStatistics tensor;
  for (const float v : values.data) tensor.add(v);
  const float tensor_scale =
      cast.rule->scales_tensor() ? cast.rule->tensor_scale(tensor.amax, largest) : 1.0f;
  if (out.scale_inv) *out.scale_inv.data<float>() = 1.0f / tensor_scale;

  const std::int64_t rows = cast.scales_blocks() ? cast.block_rows : x.rows(),
                     cols = cast.scales_blocks() ? cast.block_cols : x.cols();
  std::array<std::int64_t, kCastCounters> counts{};
  for (std::int64_t row = 0; row < x.rows(); row += rows) {
    for (std::int64_t col = 0; col < x.cols(); col += cols) {
      const std::int64_t row_end = std::min(x.rows(), row + rows), col_end = std::min(x.cols(), col + cols);
      float multiplier = tensor_scale;
      if (cast.scales_blocks()) {
        BlockStatistics statistics;
        for (std::int64_t m = row; m < row_end; ++m) {
          for (std::int64_t n = col; n < col_end; ++n) statistics.add(values(m, n));
        }
        const BlockScale scale = block_scale_of(cast, statistics.amax, statistics.nan, tensor_scale, largest);
        store_scale(out.blocks, row / rows * out.blocks.scale_inv.row_stride() + col / cols, scale.scale_inv);
        multiplier = scale.multiplier;
      }
      for (std::int64_t m = row; m < row_end; ++m) {
        for (std::int64_t n = col; n < col_end; ++n) {
          const float v = values(m, n), scaled = v * multiplier;
          const std::uint8_t code =
              cast.stochastic
                  ? fp8_encode_stochastic(cast.format, scaled, reference::uniform_of(noise, m * x.cols() + n))
                  : fp8_encode(cast.format, scaled);
          store_code(out, m, n, code);
          ++counts[kCastElements];
          counts[kCastSaturated] += std::fabs(scaled) > largest;
          counts[kCastUnderflowed] += v != 0 && !std::isnan(v) && fp8_decode(cast.format, code) == 0;
          counts[kCastNan] += std::isnan(v);
          counts[kCastInfinite] += std::isinf(v);
          counts[kCastZeros] += v == 0;
        }
      }
    }
  }
  if (!counters) return;
  for (int i = 0; i < kCastCounters; ++i)
    counters.data<std::int64_t>()[i] += counts[static_cast<std::size_t>(i)];
}

void ReferenceBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  check_dequantize(q, values);
  const DType format = q.e2m1_cols > 0 ? DType::e2m1 : q.bytes.dtype();
  const reference::RealMatrix out(values);
  for (std::int64_t m = 0; m < values.rows(); ++m) {
    for (std::int64_t n = 0; n < values.cols(); ++n) {
      float value = fp8_decode(format, load_code(q, m, n));
      if (q.blocks.scale_inv) {
        value *=
            load_scale(q.blocks, m / q.blocks.rows * q.blocks.scale_inv.row_stride() + n / q.blocks.cols);
      }
      out.set(m, n, value);
    }
  }
}

}  // namespace quaver
