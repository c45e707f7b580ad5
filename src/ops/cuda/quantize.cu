#include "base/check.h"
#include "fp8/block_scaling.h"
#include "fp8/mxfp8_scaling.h"
#include "ops/cuda/block_cast.cuh"
#include "ops/cuda/device_backend.h"

namespace quaver::cuda {
namespace {

/// Nothing if it is neither one of the recipe block's nor of mxfp8's.
std::optional<BlockShape> shape_of(const OperandCast& cast) {
  if (cast.stochastic || cast.hadamard) return {};
  if (cast.rule == mxfp8_scale_rule() && is_fp8(cast.format)) {
    if (cast.block_rows == 1 && cast.block_cols == kMxBlock) return BlockShape::mx_row;
    if (cast.block_rows == kMxBlock && cast.block_cols == 1) return BlockShape::mx_column;
  }
  if (cast.format != DType::e4m3 || cast.rule != block_scale_rule()) return {};
  if (cast.block_rows == 1 && cast.block_cols == kBlock) return BlockShape::row;
  if (cast.block_rows == kBlock && cast.block_cols == 1) return BlockShape::column;
  if (cast.block_rows == kBlock && cast.block_cols == kBlock) return BlockShape::square;
  return {};
}

BlockSink sink_of(const QuantizedTensor& out, const Tensor& counters) {
  const auto transposed = matrix_of<std::uint8_t>(out.transposed);
  const BlockScales& blocks = out.blocks;
  return {matrix_of<std::uint8_t>(out.bytes),
          transposed,
          blocks.swizzled ? Matrix<float>{} : matrix_of<float>(blocks.scale_inv),
          matrix_of<float>(blocks.transposed),
          blocks.swizzled ? matrix_of<std::uint8_t>(blocks.scale_inv) : Matrix<std::uint8_t>{},
          counters ? counters.data<unsigned long long>() : nullptr,
          fp8_of((out.bytes ? out.bytes : out.transposed).dtype()),
          run_of(transposed)};
}

template <BlockShape... kShapes>
void launch_block_cast(const Tensor& x, const std::array<BlockSink, sizeof...(kShapes)>& sinks, bool packs,
                       Stream stream) {
  with_real(x.dtype(), [&]<typename T>(T) {
    const auto kernel = packs ? cast_blocks<true, T, kShapes...> : cast_blocks<false, T, kShapes...>;
    launch("block_cast", kernel,
           {blocks_for(x.rows(), kBlock) * blocks_for(x.cols(), kBlock), kBlockCastThreads}, stream,
           matrix_of<T>(x), sinks, x.rows(), x.cols());
  });
}

/// Scales of blocks for device code: f32, swizzled e8m0, or none.
struct BlockTable {
  Matrix<float> scales;
  Matrix<std::uint8_t> tiles;
  std::int64_t rows, cols;  // of a block

  __device__ bool defined() const { return scales.data || tiles.data; }
  __device__ float operator()(std::int64_t m, std::int64_t n) const {
    if (!tiles.data) return scales(m / rows, n / cols);
    const std::int64_t at = rows == 1 ? scale_tile_offset(m, n / cols, tiles.stride)
                                      : scale_tile_offset(n, m / rows, tiles.stride);
    return e8m0_value(tiles.data[at]);
  }
};

/// One element per thread.
__global__ void widen_blocks(Matrix<std::uint8_t> bytes, Fp8 format, BlockTable scales, Matrix<bf16> values,
                             std::int64_t rows, std::int64_t cols) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (index >= rows * cols) return;
  const std::int64_t m = quotient(index, cols), n = index - m * cols;
  float value = fp8_value(format, *bytes.address(m, n));
  if (scales.defined()) value = value * scales(m, n);
  *values.address(m, n) = round_as<bf16>(value);
}

void check_block_cast(const Backend& backend, const Tensor& x, const OperandCast& cast,
                      const Tensor& counters, const QuantizedTensor& out) {
  check_quantize(x, cast, counters, out, backend.needs_transposed_fp8() && cast.block_cols == 1);
  const std::string why = backend.why_no_cast(cast);
  require(why.empty(), "quantize: the backend {} does not make this cast: {}", backend.name(), why);
}

}  // namespace

std::string DeviceBackend::why_no_cast(const OperandCast& cast) const {
  if (!cast.scales_blocks()) return Backend::why_no_cast(cast);
  if (const std::optional<BlockShape> shape = shape_of(cast)) {
    if (!library_) return {};
    return library_->why_no_blocks(is_mx(*shape) ? FactorScales::mx : FactorScales::rows);
  }
  return fmt::format(
      "it multiplies e4m3 in blocks of 1 x 128, 128 x 1 and 128 x 128 by the rule of the recipe block, and "
      "e4m3 and e5m2 in blocks of 1 x 32 and 32 x 1 by that of mxfp8, not {} in blocks of {} x {}{}",
      name_of(cast.format), cast.block_rows, cast.block_cols,
      cast.stochastic || cast.hadamard ? ", at random" : "");
}

void DeviceBackend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                             const Tensor& counters, const QuantizedTensor& out) {
  const std::optional<BlockShape> shape = shape_of(cast);
  if (!shape) return Backend::quantize(x, cast, noise, counters, out);
  check_block_cast(*this, x, cast, counters, out);
  const std::array<BlockSink, 1> sinks{sink_of(out, counters)};
  const bool pack = packs(x) && packs(out.bytes);
  switch (*shape) {
    case BlockShape::row:
      return launch_block_cast<BlockShape::row>(x, sinks, pack, stream());
    case BlockShape::column:
      return launch_block_cast<BlockShape::column>(x, sinks, pack, stream());
    case BlockShape::square:
      return launch_block_cast<BlockShape::square>(x, sinks, pack, stream());
    case BlockShape::mx_row:
      return launch_block_cast<BlockShape::mx_row>(x, sinks, pack, stream());
    case BlockShape::mx_column:
      return launch_block_cast<BlockShape::mx_column>(x, sinks, pack, stream());
  }
}

void DeviceBackend::quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                                  const Tensor& counters) {
  const std::optional<BlockShape> a = shape_of(first.cast), b = shape_of(second.cast);
  const bool in_blocks = a == BlockShape::row && b == BlockShape::column,
             mx = a == BlockShape::mx_row && b == BlockShape::mx_column;
  if (!in_blocks && !mx) return Backend::quantize_both(x, first, second, counters);
  for (const CastTask* task : {&first, &second}) check_block_cast(*this, x, task->cast, counters, task->out);
  const std::array<BlockSink, 2> sinks{sink_of(first.out, counters), sink_of(second.out, counters)};
  const bool pack = packs(x) && packs(first.out.bytes) && packs(second.out.bytes);
  if (mx) return launch_block_cast<BlockShape::mx_row, BlockShape::mx_column>(x, sinks, pack, stream());
  launch_block_cast<BlockShape::row, BlockShape::column>(x, sinks, pack, stream());
}

void DeviceBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  if (!q.bytes && q.transposed) {
    QuantizedTensor whole = q;
    whole.bytes = transposed(q.transposed);
    return dequantize(whole, values);
  }
  check_dequantize(q, values);
  const BlockScales& blocks = q.blocks;
  require(
      q.e2m1_cols == 0 && (!blocks.scale_inv || blocks.swizzled || blocks.scale_inv.dtype() == DType::f32),
      "dequantize: the backend {} has e4m3 and e5m2, and f32 or swizzled e8m0 scales of blocks", name());
  const BlockTable table{blocks.swizzled ? Matrix<float>{} : matrix_of<float>(blocks.scale_inv),
                         blocks.swizzled ? matrix_of<std::uint8_t>(blocks.scale_inv) : Matrix<std::uint8_t>{},
                         blocks.rows, blocks.cols};
  const std::int64_t elements = values.rows() * values.cols();
  launch("dequantize", widen_blocks, {blocks_for(elements, kTileThreads), kTileThreads}, stream(),
         matrix_of<std::uint8_t>(q.bytes), fp8_of(q.bytes.dtype()), table, matrix_of<bf16>(values),
         values.rows(), values.cols());
}

}  // namespace quaver::cuda
