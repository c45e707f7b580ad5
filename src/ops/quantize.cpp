// What all backends share of casts whose scales are read off the tensor.
#include "base/check.h"
#include "fp8/current_scaling.h"
#include "ops/contracts.h"
#include "quaver/fp8_format.h"

namespace quaver {

QuantizedTensor allocate_quantized(Backend& backend, const OperandCast& cast, std::int64_t rows,
                                   std::int64_t cols) {
  QuantizedTensor q;
  if (cast.format == DType::e2m1) {
    q.bytes = backend.allocate(DType::u8, {rows, (cols + 1) / 2});
    q.e2m1_cols = cols;
  } else {
    q.bytes = backend.allocate(cast.format, {rows, cols});
    if (backend.needs_transposed_fp8() && !cast.scales_blocks())
      q.transposed = backend.allocate(cast.format, {cols, rows});
  }
  if (cast.rule->scales_tensor() || !cast.scales_blocks()) q.scale_inv = backend.allocate(DType::f32, {1});
  if (!cast.scales_blocks()) return q;
  const auto blocks = [](std::int64_t size, std::int64_t block) { return (size + block - 1) / block; };
  q.blocks = {
      backend.allocate(cast.rule->stored(), {blocks(rows, cast.block_rows), blocks(cols, cast.block_cols)}),
      cast.block_rows, cast.block_cols};
  return q;
}

/// Current scaling in the operations of delayed scaling, so that the scale never leaves the device: a slot of one entry,
/// updated between two casts of which the first is for its amax alone.
void Backend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise&, const Tensor& counters,
                       const QuantizedTensor& out) {
  check_quantize(x, cast, counters, out);
  require(!cast.scales_blocks() && cast.rule == current_scale_rule() && !cast.stochastic && !cast.hadamard,
          "quantize: the backend {} casts with one scale per tensor by current scaling alone; this cast has "
          "blocks of "
          "{} x {} or another rule. Hint: the backend cpu runs every recipe",
          name(), cast.block_rows, cast.block_cols);
  const ScalingSlot slot{allocate(DType::f32, {1}), allocate(DType::f32, {1}), {}, {}};
  fill(slot.scale, 1);
  fill(slot.amax_history, 0);
  this->cast(x, {{}, out, {cast.format, slot.scale, slot.amax_history, {}}});
  const ScaleUpdate update{slot, fp8_max(cast.format), 0, AmaxCompute::most_recent};
  update_scales({&update, 1});
  this->cast(x, {{}, out, {cast.format, slot.scale, {}, counters}});
}

void Backend::dequantize(const QuantizedTensor&, const Tensor&) {
  fail(ErrorKind::usage,
       "dequantize: the backend {} does not have it. Hint: the backends cpu and reference do", name());
}

}  // namespace quaver
