#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "fp8/current_scaling.h"
#include "ops/block_scale.h"
#include "ops/contracts.h"
#include "ops/cpu/code_formats.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/block_cast.h"
#include "ops/cpu/work.h"
#include "quaver/fp8_format.h"

namespace quaver {
namespace {

using cpu::BlockCastKernels;
using cpu::CodeCounts;
using cpu::CodeFormat;
using cpu::Real;

constexpr std::uint32_t kInfinityBits = 0x7F800000;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// A matrix in bands of whole blocks of rows by tiles of whole blocks of columns: what one thread casts at a time. The cut
/// depends on the shapes alone.
struct Cut {
  Cut(std::int64_t matrix_rows, std::int64_t matrix_cols, std::int64_t block_rows, std::int64_t block_cols)
      : rows(matrix_rows), cols(matrix_cols) {
    constexpr std::int64_t kBandRows = 32, kTileCols = 1024;
    band_rows = block_rows * std::max<std::int64_t>(1, kBandRows / block_rows);
    tile_cols = block_cols * std::max<std::int64_t>(1, kTileCols / block_cols);
    if (tile_cols % 2 == 1) tile_cols *= 2;  // two E2M1 numbers of a byte belong to one tile
    tiles = ceil_div(cols, tile_cols);
  }
  std::int64_t count() const { return ceil_div(rows, band_rows) * tiles; }

  std::int64_t rows, cols, band_rows, tile_cols, tiles;
};

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

/// One cast.
class BlockCast {
 public:
  BlockCast(Backend& backend, const Threads& threads, const BlockCastKernels& kernels, const Tensor& x,
            const OperandCast& cast, const CastNoise& noise, const QuantizedTensor& out)
      : backend_(backend),
        threads_(threads),
        kernels_(kernels),
        x_(x),
        cast_(cast),
        noise_(noise),
        out_(out),
        block_rows_(cast.scales_blocks() ? cast.block_rows : 1),
        block_cols_(cast.scales_blocks() ? cast.block_cols : 1),
        format_(cpu::code_format_of(cast.format)) {}

  CodeCounts run() {
    if (cast_.hadamard) turn_by_hadamard();
    if (cast_.rule->scales_tensor()) tensor_scale_ = cast_.rule->tensor_scale(tensor_amax(), format_.largest);
    if (out_.scale_inv) *out_.scale_inv.data<float>() = 1.0f / tensor_scale_;
    const Cut cut(x_.rows(), x_.cols(), block_rows_, block_cols_);
    std::vector<CodeCounts> counts(static_cast<std::size_t>(cut.count()));
    threads_.for_each(cut.count(), [&](std::int64_t index) {
      const std::int64_t row = index / cut.tiles * cut.band_rows, col = index % cut.tiles * cut.tile_cols;
      cast_tile({row, std::min(cut.rows, row + cut.band_rows)},
                {col, std::min(cut.cols, col + cut.tile_cols)}, counts[static_cast<std::size_t>(index)]);
    });
    CodeCounts total;
    for (const CodeCounts& part : counts) {
      total.saturated += part.saturated;
      total.underflowed += part.underflowed;
      total.nan += part.nan;
      total.infinite += part.infinite;
      total.zeros += part.zeros;
    }
    return total;
  }

 private:
  void widen(std::int64_t row, const Range& cols, float* to) const {
    const auto* from = static_cast<const std::byte*>(x_.raw());
    from += (row * x_.row_stride() + cols.begin) * static_cast<std::int64_t>(size_of(x_.dtype()));
    kernels_.widen(cpu::real_of(x_), from, cols.size(), to);
  }

  void turn_by_hadamard() {
    const Tensor turned = backend_.allocate(DType::f32, x_.shape());
    const std::uint32_t signs = hadamard_signs(noise_);
    const Range all{0, x_.cols()};
    threads_.for_each(ceil_div(x_.rows(), kHadamardRows), [&](std::int64_t group) {
      const std::int64_t first = group * kHadamardRows, end = std::min(x_.rows(), first + kHadamardRows);
      float* to = turned.data<float>() + first * x_.cols();
      for (std::int64_t row = first; row < end; ++row) widen(row, all, to + (row - first) * x_.cols());
      if (end - first == kHadamardRows) kernels_.hadamard(to, x_.cols(), x_.cols(), signs);
    });
    x_ = turned;
  }

  float tensor_amax() const {
    const Cut cut(x_.rows(), x_.cols(), 1, 1);
    std::vector<float> amaxes(static_cast<std::size_t>(cut.count()));
    threads_.for_each(cut.count(), [&](std::int64_t index) {
      const std::int64_t row = index / cut.tiles * cut.band_rows, col = index % cut.tiles * cut.tile_cols;
      const Range rows{row, std::min(cut.rows, row + cut.band_rows)},
          cols{col, std::min(cut.cols, col + cut.tile_cols)};
      amaxes[static_cast<std::size_t>(index)] = statistics_of(rows, cols).amax;
    });
    return amaxes.empty() ? 0 : *std::max_element(amaxes.begin(), amaxes.end());
  }

  struct Statistics {
    float amax = 0;
    bool nan = false;
  };

  Statistics statistics_of(const Range& rows, const Range& cols) const {
    std::vector<float> x(static_cast<std::size_t>(cols.size()));
    std::vector<std::uint32_t> bits(x.size(), 0);
    raise(rows, cols, x.data(), bits.data());
    return statistics_of(rows, cols, bits.data());
  }

  void raise(const Range& rows, const Range& cols, float* x, std::uint32_t* bits) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      widen(row, cols, x);
      kernels_.raise_amax(x, cols.size(), bits);
    }
  }

  /// From the largest magnitude bits of each column; where one is a NaN's, the numbers are looked at again.
  Statistics statistics_of(const Range& rows, const Range& cols, const std::uint32_t* bits) const {
    const std::uint32_t largest = *std::max_element(bits, bits + cols.size());
    if (largest <= kInfinityBits) return {std::bit_cast<float>(largest), false};
    Statistics statistics{0, true};
    std::vector<float> x(static_cast<std::size_t>(cols.size()));
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      widen(row, cols, x.data());
      for (const float value : x) statistics.amax = std::fmax(statistics.amax, std::fabs(value));
    }
    return statistics;
  }

  void cast_tile(const Range& rows, const Range& cols, CodeCounts& counts) const {
    const auto size = static_cast<std::size_t>(cols.size());
    std::vector<float> x(size), multiplier(size, tensor_scale_), noise(size + cpu::kUniformSlack);
    std::vector<std::uint32_t> bits(size);
    std::vector<std::uint8_t> codes(size + 1);
    for (std::int64_t row = rows.begin; row < rows.end; row += block_rows_) {
      const Range block{row, std::min(rows.end, row + block_rows_)};
      if (cast_.scales_blocks()) {
        std::fill(bits.begin(), bits.end(), 0u);
        raise(block, cols, x.data(), bits.data());
        scale_blocks(block, cols, bits.data(), multiplier.data());
      }
      for (std::int64_t m = block.begin; m < block.end; ++m) {
        if (block.size() > 1 || !cast_.scales_blocks()) widen(m, cols, x.data());
        const auto first = static_cast<std::uint64_t>(m * x_.cols() + cols.begin);
        const float* uniform =
            cast_.stochastic ? kernels_.uniform(noise_.seed, noise_.stream, first, cols.size(), noise.data())
                             : nullptr;
        store_row(m, cols, x.data(), multiplier.data(), uniform, codes, counts);
      }
    }
  }

  /// The scales of a row of blocks, and the multiplier of each column.
  void scale_blocks(const Range& rows, const Range& cols, const std::uint32_t* bits,
                    float* multiplier) const {
    const std::int64_t first = rows.begin / block_rows_ * out_.blocks.scale_inv.row_stride();
    for (std::int64_t col = cols.begin; col < cols.end; col += block_cols_) {
      const Range block{col, std::min(cols.end, col + block_cols_)};
      const std::int64_t at = col - cols.begin;
      const Statistics statistics = statistics_of(rows, block, bits + at);
      const BlockScale scale =
          block_scale_of(cast_, statistics.amax, statistics.nan, tensor_scale_, format_.largest);
      store_scale(out_.blocks, first + col / block_cols_, scale.scale_inv);
      std::fill(multiplier + at, multiplier + at + block.size(), scale.multiplier);
    }
  }

  void store_row(std::int64_t row, const Range& cols, const float* x, const float* multiplier,
                 const float* uniform, std::vector<std::uint8_t>& codes, CodeCounts& counts) const {
    std::uint8_t* to = out_.bytes.data<std::uint8_t>() + row * out_.bytes.row_stride();
    if (out_.e2m1_cols == 0)
      return kernels_.encode(format_, x, multiplier, uniform, cols.size(), to + cols.begin, counts);
    kernels_.encode(format_, x, multiplier, uniform, cols.size(), codes.data(), counts);
    codes[static_cast<std::size_t>(cols.size())] = 0;
    for (std::int64_t n = 0; n < cols.size(); n += 2) {
      const auto at = static_cast<std::size_t>(n);
      to[(cols.begin + n) / 2] = static_cast<std::uint8_t>(codes[at] | codes[at + 1] << 4);
    }
  }

  Backend& backend_;
  const Threads& threads_;
  const BlockCastKernels& kernels_;
  Tensor x_;
  const OperandCast& cast_;
  const CastNoise& noise_;
  const QuantizedTensor& out_;
  std::int64_t block_rows_, block_cols_;
  CodeFormat format_;
  float tensor_scale_ = 1;
};

}  // namespace

void CpuBackend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                          const Tensor& counters, const QuantizedTensor& out) {
  if (cast.rule == current_scale_rule() && !cast.scales_blocks() && !cast.stochastic && !cast.hadamard)
    return Backend::quantize(x, cast, noise, counters, out);  // by the faster kernels of delayed scaling
  check_quantize(x, cast, counters, out);
  const CodeCounts counts = BlockCast(*this, threads_, *kernels_.block_cast, x, cast, noise, out).run();
  if (!counters) return;
  auto* totals = counters.data<std::int64_t>();
  totals[kCastElements] += x.elements();
  totals[kCastSaturated] += counts.saturated;
  totals[kCastUnderflowed] += counts.underflowed;
  totals[kCastNan] += counts.nan;
  totals[kCastInfinite] += counts.infinite;
  totals[kCastZeros] += counts.zeros;
}

void CpuBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  check_dequantize(q, values);
  const std::array<float, 256> table = cpu::decode_table_of(q.e2m1_cols > 0 ? DType::e2m1 : q.bytes.dtype());
  const std::int64_t cols = values.cols(), block_rows = q.blocks.scale_inv ? q.blocks.rows : 1;
  constexpr std::int64_t kBandRows = 32;
  const std::int64_t band_rows = block_rows * std::max<std::int64_t>(1, kBandRows / block_rows);
  threads_.for_each(ceil_div(values.rows(), band_rows), [&](std::int64_t band) {
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
