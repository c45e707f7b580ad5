// What all backends share of casts whose scales are read off the tensor.
#include "base/check.h"
#include "fp8/current_scaling.h"
#include "ops/contracts.h"
#include "ops/scale_tiles.h"
#include "quaver/fp8_format.h"

namespace quaver {

namespace {

/// A table of scales, each row padded to a multiple of `granule`.
Tensor scale_table(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                   std::int64_t granule) {
  return backend.allocate(dtype, {rows, (cols + granule - 1) / granule * granule}).columns(0, cols);
}

/// Where GEMMs read operands contiguous along the contraction alone, they do so with the scales: those of single rows or columns lie along them,
/// padded as the bytes may be, those of wider blocks along the contraction (see ops/cuda/product.h).
BlockScales allocate_scales(Backend& backend, const OperandCast& cast, std::int64_t rows, std::int64_t cols) {
  const auto blocks = [](std::int64_t size, std::int64_t block) { return (size + block - 1) / block; };
  const auto granule = [&](std::int64_t block) {
    constexpr std::int64_t kOfNumbers = 16, kOfBlocks = 4;
    return !backend.needs_transposed_fp8() ? 1 : block == 1 ? kOfNumbers : kOfBlocks;
  };
  const std::int64_t down = blocks(rows, cast.block_rows), across = blocks(cols, cast.block_cols);
  const DType stored = cast.rule->stored();
  const bool along_columns = cast.block_rows == 1;
  if (backend.reads_swizzled_scales() && stored == DType::e8m0 && along_columns != (cast.block_cols == 1)) {
    const Shape tiles = along_columns ? scale_tiles_shape(rows, across) : scale_tiles_shape(cols, down);
    return {backend.allocate(stored, tiles), cast.block_rows, cast.block_cols, {}, true};
  }
  BlockScales scales{scale_table(backend, stored, down, across, granule(cast.block_cols)), cast.block_rows,
                     cast.block_cols};
  if (backend.needs_transposed_fp8() && cast.block_cols > 1)
    scales.transposed = scale_table(backend, stored, across, down, granule(cast.block_rows));
  return scales;
}

}  // namespace

Output Output::columns(std::int64_t begin, std::int64_t count) const {
  Output part = *this;
  part.casts = nullptr;  // of the whole matrix
  if (values) part.values = values.columns(begin, count);
  if (quantized.bytes) part.quantized.bytes = quantized.bytes.columns(begin, count);
  if (quantized.transposed) part.quantized.transposed = quantized.transposed.slice(begin, count);
  return part;
}

QuantizedTensor allocate_quantized(Backend& backend, const OperandCast& cast, std::int64_t rows,
                                   std::int64_t cols) {
  QuantizedTensor q;
  if (cast.format == DType::e2m1) {
    q.bytes = backend.allocate(DType::u8, {rows, (cols + 1) / 2});
    q.e2m1_cols = cols;
  } else {
    // Blocks in one row are never contracted along columns, blocks in one column never along rows.
    const bool transposes = backend.needs_transposed_fp8() && cast.block_rows != 1;
    if (!transposes || cast.block_cols != 1) q.bytes = backend.allocate(cast.format, {rows, cols});
    if (transposes) q.transposed = backend.allocate(cast.format, {cols, rows});
  }
  if (cast.rule->scales_tensor() || !cast.scales_blocks()) q.scale_inv = backend.allocate(DType::f32, {1});
  if (cast.scales_blocks()) q.blocks = allocate_scales(backend, cast, rows, cols);
  return q;
}

std::string Backend::why_no_cast(const OperandCast& cast) const {
  if (!cast.scales_blocks() && cast.rule == current_scale_rule() && !cast.stochastic && !cast.hadamard)
    return {};
  return "it casts with one scale per tensor, by the rule of current scaling alone";
}

/// Current scaling in the operations of delayed scaling, so that the scale never leaves the device: a slot of one entry,
/// updated between two casts of which the first is for its amax alone.
void Backend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise&, const Tensor& counters,
                       const QuantizedTensor& out) {
  check_quantize(x, cast, counters, out);
  const std::string why = why_no_cast(cast);
  require(why.empty(),
          "quantize: the backend {} does not make this cast: {}. Hint: the backend cpu runs every recipe",
          name(), why);
  const ScalingSlot slot{allocate(DType::f32, {1}), allocate(DType::f32, {1}), {}, {}};
  fill(slot.scale, 1);
  fill(slot.amax_history, 0);
  this->cast(x, {{}, out, {cast.format, slot.scale, slot.amax_history, {}}});
  const ScaleUpdate update{slot, fp8_max(cast.format), 0, AmaxCompute::most_recent};
  update_scales({&update, 1});
  this->cast(x, {{}, out, {cast.format, slot.scale, {}, counters}});
}

void Backend::quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                            const Tensor& counters) {
  for (const CastTask* task : {&first, &second}) quantize(x, task->cast, task->noise, counters, task->out);
}

void Backend::dequantize(const QuantizedTensor&, const Tensor&) {
  fail(ErrorKind::usage,
       "dequantize: the backend {} does not have it. Hint: the backends cpu and reference do", name());
}

}  // namespace quaver
