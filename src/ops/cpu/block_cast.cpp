#include "ops/cpu/block_cast.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "ops/block_scale.h"
#include "ops/cpu/code_formats.h"
#include "ops/cpu/work.h"

namespace quaver::cpu {
namespace {

constexpr std::uint32_t kInfinityBits = 0x7F800000;

CodeCounts total_of(const std::vector<CodeCounts>& counts) {
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

}  // namespace

Cut::Cut(std::int64_t matrix_rows, std::int64_t matrix_cols, std::int64_t block_rows, std::int64_t block_cols)
    : rows(matrix_rows), cols(matrix_cols) {
  constexpr std::int64_t kBandRows = 32, kTileCols = 2048;
  band_rows = block_rows * std::max<std::int64_t>(1, kBandRows / block_rows);
  tile_cols = block_cols * std::max<std::int64_t>(1, kTileCols / block_cols);
  if (tile_cols % 2 == 1) tile_cols *= 2;  // two E2M1 numbers of a byte belong to one tile
  tiles = ceil_div(cols, tile_cols);
}

Range Cut::rows_of(std::int64_t index) const {
  return block_of({0, rows}, index / tiles, band_rows);
}

Range Cut::cols_of(std::int64_t index) const {
  return block_of({0, cols}, index % tiles, tile_cols);
}

BlockCast::BlockCast(Backend& backend, const Threads& threads, const Kernels& kernels, const Tensor& x,
                     const OperandCast& cast, const CastNoise& noise, const QuantizedTensor& out)
    : backend_(backend),
      threads_(threads),
      kernels_(*kernels.block_cast),
      x_(x),
      cast_(cast),
      noise_(noise),
      out_(out),
      block_rows_(cast.scales_blocks() ? cast.block_rows : 1),
      block_cols_(cast.scales_blocks() ? cast.block_cols : 1),
      format_(code_format_of(cast.format)) {
  if (Bf16Blocks::take(kernels, x, cast)) bf16_.emplace(kernels, threads.count(), x_, cast, out);
}

CodeCounts BlockCast::run() {
  prepare();
  const Cut cut(x_.rows(), x_.cols(), block_rows_, block_cols_);
  std::vector<CodeCounts> counts(static_cast<std::size_t>(cut.count()));
  threads_.for_each_on_thread(cut.count(), [&](std::int64_t index, int thread) {
    cast_tile(cut.rows_of(index), cut.cols_of(index), thread, counts[static_cast<std::size_t>(index)]);
  });
  return total_of(counts);
}

bool BlockCast::can_alternate(const Kernels& kernels, const Tensor& x, const OperandCast& first,
                              const OperandCast& second) {
  return Bf16Blocks::take(kernels, x, first) && Bf16Blocks::take(kernels, x, second);
}

std::array<CodeCounts, 2> BlockCast::run_both(BlockCast& first, BlockCast& second) {
  first.prepare();
  second.prepare();
  const Cut cut(first.x_.rows(), first.x_.cols(), std::lcm(first.block_rows_, second.block_rows_),
                std::lcm(first.block_cols_, second.block_cols_));
  std::vector<CodeCounts> of_first(static_cast<std::size_t>(cut.count())), of_second(of_first.size());
  first.threads_.for_each_on_thread(cut.count(), [&](std::int64_t index, int thread) {
    const Range rows = cut.rows_of(index), cols = cut.cols_of(index);
    first.cast_tile(rows, cols, thread, of_first[static_cast<std::size_t>(index)]);
    second.cast_tile(rows, cols, thread, of_second[static_cast<std::size_t>(index)]);
  });
  return {total_of(of_first), total_of(of_second)};
}

/// What comes before the tiles.
void BlockCast::prepare() {
  if (cast_.hadamard) turn_by_hadamard();
  if (cast_.rule->scales_tensor()) tensor_scale_ = cast_.rule->tensor_scale(tensor_amax(), format_.largest);
  if (out_.scale_inv) *out_.scale_inv.data<float>() = 1.0f / tensor_scale_;
}

void BlockCast::widen(std::int64_t row, const Range& cols, float* to) const {
  const auto* from = static_cast<const std::byte*>(x_.raw());
  from += (row * x_.row_stride() + cols.begin) * static_cast<std::int64_t>(size_of(x_.dtype()));
  kernels_.widen(real_of(x_), from, cols.size(), to);
}

void BlockCast::turn_by_hadamard() {
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

float BlockCast::tensor_amax() const {
  const Cut cut(x_.rows(), x_.cols(), 1, 1);
  std::vector<float> amaxes(static_cast<std::size_t>(cut.count()));
  threads_.for_each(cut.count(), [&](std::int64_t index) {
    amaxes[static_cast<std::size_t>(index)] = statistics_of(cut.rows_of(index), cut.cols_of(index)).amax;
  });
  return amaxes.empty() ? 0 : *std::max_element(amaxes.begin(), amaxes.end());
}

BlockCast::Statistics BlockCast::statistics_of(const Range& rows, const Range& cols) const {
  std::vector<float> x(static_cast<std::size_t>(cols.size()));
  std::vector<std::uint32_t> bits(x.size(), 0);
  raise(rows, cols, x.data(), bits.data());
  return statistics_of(rows, cols, bits.data());
}

void BlockCast::raise(const Range& rows, const Range& cols, float* x, std::uint32_t* bits) const {
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    widen(row, cols, x);
    kernels_.raise_amax(x, cols.size(), bits);
  }
}

BlockCast::Statistics BlockCast::statistics_of(const Range& rows, const Range& cols,
                                               const std::uint32_t* bits) const {
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

void BlockCast::cast_tile(const Range& rows, const Range& cols, int thread, CodeCounts& counts) {
  if (!bf16_) return cast_any(rows, cols, counts);
  for (std::int64_t row = rows.begin; row < rows.end; row += block_rows_) {
    const Range blocks{row, std::min(rows.end, row + block_rows_)};
    if (!bf16_->cast(blocks, cols, thread, counts)) cast_any(blocks, cols, counts);
  }
  bf16_->finish();
}

void BlockCast::cast_any(const Range& rows, const Range& cols, CodeCounts& counts) const {
  const auto size = static_cast<std::size_t>(cols.size());
  std::vector<float> x(size), multiplier(size, tensor_scale_), noise(size + kUniformSlack);
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

void BlockCast::scale_blocks(const Range& rows, const Range& cols, const std::uint32_t* bits,
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

void BlockCast::store_row(std::int64_t row, const Range& cols, const float* x, const float* multiplier,
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

}  // namespace quaver::cpu
