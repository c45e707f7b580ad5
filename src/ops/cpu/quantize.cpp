#include <algorithm>
#include <array>
#include <vector>

#include "fp8/current_scaling.h"
#include "ops/block_scale.h"
#include "ops/contracts.h"
#include "ops/cpu/block_cast.h"
#include "ops/cpu/code_formats.h"
#include "ops/cpu/cpu_backend.h"

namespace quaver {

namespace {

/// Casts that the kernels of delayed scaling make faster.
bool is_of_whole_tensor(const OperandCast& cast) {
  return cast.rule == current_scale_rule() && !cast.scales_blocks() && !cast.stochastic && !cast.hadamard;
}

void add_to(const Tensor& counters, const Tensor& x, const cpu::CodeCounts& counts) {
  if (!counters) return;
  auto* totals = counters.data<std::int64_t>();
  totals[kCastElements] += x.elements();
  totals[kCastSaturated] += counts.saturated;
  totals[kCastUnderflowed] += counts.underflowed;
  totals[kCastNan] += counts.nan;
  totals[kCastInfinite] += counts.infinite;
  totals[kCastZeros] += counts.zeros;
}

}  // namespace

void CpuBackend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                          const Tensor& counters, const QuantizedTensor& out) {
  if (is_of_whole_tensor(cast)) return Backend::quantize(x, cast, noise, counters, out);
  check_quantize(x, cast, counters, out);
  add_to(counters, x, cpu::BlockCast(*this, threads_, kernels_, x, cast, noise, out).run());
}

void CpuBackend::quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                               const Tensor& counters) {
  if (!cpu::BlockCast::can_alternate(kernels_, x, first.cast, second.cast))
    return Backend::quantize_both(x, first, second, counters);
  for (const CastTask* task : {&first, &second}) check_quantize(x, task->cast, counters, task->out);
  cpu::BlockCast a(*this, threads_, kernels_, x, first.cast, first.noise, first.out),
      b(*this, threads_, kernels_, x, second.cast, second.noise, second.out);
  for (const cpu::CodeCounts& counts : cpu::BlockCast::run_both(a, b)) add_to(counters, x, counts);
}

void CpuBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  check_dequantize(q, values);
  const std::array<float, 256> table = cpu::decode_table_of(q.e2m1_cols > 0 ? DType::e2m1 : q.bytes.dtype());
  const std::int64_t cols = values.cols(), block_rows = q.blocks.scale_inv ? q.blocks.rows : 1;
  constexpr std::int64_t kBandRows = 32;
  const std::int64_t band_rows = block_rows * std::max<std::int64_t>(1, kBandRows / block_rows);
  threads_.for_each(cpu::ceil_div(values.rows(), band_rows), [&](std::int64_t band) {
    std::vector<float> scale(static_cast<std::size_t>(cols), 1.0f);
    std::vector<std::uint8_t> unpacked(static_cast<std::size_t>(q.e2m1_cols + 1));
    const std::int64_t end = std::min(values.rows(), (band + 1) * band_rows);
    for (std::int64_t row = band * band_rows; row < end; ++row) {
      if (q.blocks.scale_inv && row % block_rows == 0) {
        const std::int64_t first = row / block_rows * q.blocks.scale_inv.row_stride();
        for (std::int64_t col = 0; col < cols; col += q.blocks.cols) {
          std::fill(scale.begin() + col, scale.begin() + std::min(cols, col + q.blocks.cols),
                    load_scale(q.blocks, first + col / q.blocks.cols));
        }
      }
      const std::uint8_t* codes = q.bytes.data<std::uint8_t>() + row * q.bytes.row_stride();
      if (q.e2m1_cols > 0) {
        for (std::int64_t n = 0; n < cols; n += 2) {
          unpacked[static_cast<std::size_t>(n)] = codes[n / 2] & 0xF;
          unpacked[static_cast<std::size_t>(n + 1)] = codes[n / 2] >> 4;
        }
        codes = unpacked.data();
      }
      kernels_.block_cast->decode(table.data(), codes, scale.data(), cols,
                                  values.data<std::uint16_t>() + row * values.row_stride());
    }
  });
}

}  // namespace quaver
