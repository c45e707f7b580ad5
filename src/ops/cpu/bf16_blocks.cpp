#include "ops/cpu/bf16_blocks.h"

#include <algorithm>
#include <bit>

#include "ops/block_scale.h"
#include "ops/cpu/work.h"
#include "quaver/fp8_format.h"

namespace quaver::cpu {
namespace {

constexpr std::uint16_t kInfinity = 0x7F80;

}  // namespace

bool Bf16Blocks::take(const Kernels& kernels, const Tensor& x, const OperandCast& cast) {
  return kernels.bf16_blocks->exist && x.dtype() == DType::bf16 && is_fp8(cast.format) &&
         cast.scales_blocks() && !cast.rule->scales_tensor() && !cast.stochastic && !cast.hadamard;
}

Bf16Blocks::Bf16Blocks(const Kernels& kernels, int threads, const Tensor& x, const OperandCast& cast,
                       const QuantizedTensor& out)
    : kernels_(*kernels.bf16_blocks),
      x_(x),
      cast_(cast),
      out_(out),
      e5m2_(cast.format == DType::e5m2),
      streams_(x.elements() >= kStreamedBytes),
      scratch_(static_cast<std::size_t>(threads)) {}

bool Bf16Blocks::cast(const Range& rows, const Range& cols, int thread, CodeCounts& counts) {
  Scratch& scratch = scratch_[static_cast<std::size_t>(thread)];
  find_amaxes(rows, cols, scratch);
  const Tensor& scales = out_.blocks.scale_inv;
  const std::int64_t first =
      rows.begin / cast_.block_rows * scales.row_stride() + cols.begin / cast_.block_cols;
  const bool fits = scales.dtype() == DType::f32 ? store_scales<float>(first, scratch)
                                                 : store_scales<std::uint8_t>(first, scratch);
  if (!fits) return false;
  const std::int16_t* offsets = scratch.block_offsets.data();
  if (cast_.block_cols > 1) {
    scratch.offsets.resize(static_cast<std::size_t>(cols.size() + kSpreadSlack));
    kernels_.spread(offsets, cols.size(), cast_.block_cols, scratch.offsets.data());
    offsets = scratch.offsets.data();
  }
  const std::int64_t stride = out_.bytes.row_stride();
  kernels_.encode(e5m2_, {rows.size(), cols.size()}, {row(rows.begin, cols), x_.row_stride()}, offsets,
                  streams_, out_.bytes.data<std::uint8_t>() + rows.begin * stride + cols.begin, stride,
                  counts);
  return true;
}

template <typename T>
bool Bf16Blocks::store_scales(std::int64_t first, Scratch& scratch) const {
  T* to = out_.blocks.scale_inv.data<T>() + first;
  scratch.block_offsets.resize(scratch.blocks.size());
  bool fit = true;
  for (std::size_t i = 0; i < scratch.blocks.size(); ++i) {
    const std::uint16_t amax = scratch.blocks[i];
    Scale& scale = scratch.scales[amax % scratch.scales.size()];
    if (scale.amax != amax) scale = scale_of(amax);
    fit = fit && scale.fits;
    scale.store(to[i]);
    scratch.block_offsets[i] = scale.offset;
  }
  return fit;
}

void Bf16Blocks::find_amaxes(const Range& rows, const Range& cols, Scratch& scratch) const {
  const std::int64_t size = cast_.block_cols;
  scratch.blocks.resize(static_cast<std::size_t>((cols.size() + size - 1) / size));
  if (rows.size() == 1 && size > 1)
    return kernels_.largest_of_groups(row(rows.begin, cols), cols.size(), size, scratch.blocks.data());
  std::vector<std::uint16_t>& columns = size == 1 ? scratch.blocks : scratch.columns;
  columns.assign(static_cast<std::size_t>(cols.size()), 0);
  for (std::int64_t m = rows.begin; m < rows.end; ++m)
    kernels_.raise(row(m, cols), cols.size(), columns.data());
  if (size > 1) kernels_.largest_of_groups(columns.data(), cols.size(), size, scratch.blocks.data());
}

Bf16Blocks::Scale Bf16Blocks::scale_of(std::uint16_t amax) const {
  Scale scale;
  scale.amax = amax;
  if (amax >= kInfinity) return scale;
  const float value = std::bit_cast<float>(std::uint32_t{amax} << 16), largest = fp8_max(cast_.format);
  const BlockScale block = block_scale_of(cast_, value, false, 1.0f, largest);
  scale.scale_inv = block.scale_inv;
  const DType stored = out_.blocks.scale_inv.dtype();
  if (stored != DType::f32) scale.byte = scale_byte(stored, block.scale_inv);
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(block.multiplier);
  const int exponent = static_cast<int>(bits >> 23) - 127;
  const bool power_of_two = (bits & 0x7FFFFF) == 0 && exponent > -127 && exponent < 128;
  scale.fits = amax == 0 ? bits < 0x7F800000  // times this they stay zeros of their signs
                         : power_of_two && exponent >= kLeastExponent && exponent <= kLargestExponent &&
                               value * block.multiplier <= largest;
  if (scale.fits) scale.offset = code_offset(e5m2_, amax == 0 ? 0 : exponent);
  return scale;
}

const std::uint16_t* Bf16Blocks::row(std::int64_t index, const Range& cols) const {
  return x_.data<std::uint16_t>() + index * x_.row_stride() + cols.begin;
}

}  // namespace quaver::cpu
