#include "base/check.h"
#include "fp8/block_scaling.h"
#include "ops/cuda/block_cast.cuh"
#include "ops/cuda/device_backend.h"

namespace quaver::cuda {
namespace {

/// Nothing if it is not one of the recipe block's.
std::optional<BlockShape> shape_of(const OperandCast& cast) {
  if (cast.format != DType::e4m3 || cast.rule != block_scale_rule() || cast.stochastic || cast.hadamard)
    return {};
  if (cast.block_rows == 1 && cast.block_cols == kBlock) return BlockShape::row;
  if (cast.block_rows == kBlock && cast.block_cols == 1) return BlockShape::column;
  if (cast.block_rows == kBlock && cast.block_cols == kBlock) return BlockShape::square;
  return {};
}

BlockSink sink_of(const QuantizedTensor& out, const Tensor& counters) {
  const auto transposed = matrix_of<std::uint8_t>(out.transposed);
  return {matrix_of<std::uint8_t>(out.bytes),
          transposed,
          matrix_of<float>(out.blocks.scale_inv),
          matrix_of<float>(out.blocks.transposed),
          counters ? counters.data<unsigned long long>() : nullptr,
          transposed.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(transposed.data) % 4 == 0};
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

/// One element per thread.
__global__ void widen_blocks(Matrix<std::uint8_t> bytes, Fp8 format, Matrix<float> scales,
                             std::int64_t block_rows, std::int64_t block_cols, Matrix<bf16> values,
                             std::int64_t rows, std::int64_t cols) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (index >= rows * cols) return;
  const std::int64_t m = quotient(index, cols), n = index - m * cols;
  float value = fp8_value(format, *bytes.address(m, n));
  if (scales.data) value = value * scales(m / block_rows, n / block_cols);
  *values.address(m, n) = round_as<bf16>(value);
}

void check_block_cast(const Backend& backend, const Tensor& x, const OperandCast& cast,
                      const Tensor& counters, const QuantizedTensor& out) {
  check_quantize(x, cast, counters, out);
  const std::string why = backend.why_no_cast(cast);
  require(why.empty(), "quantize: the backend {} does not make this cast: {}", backend.name(), why);
}

}  // namespace

std::string DeviceBackend::why_no_cast(const OperandCast& cast) const {
  if (!cast.scales_blocks()) return Backend::why_no_cast(cast);
  if (shape_of(cast)) return library_ ? library_->why_no_blocks() : std::string();
  return fmt::format(
      "it multiplies e4m3 in blocks of 1 x 128, 128 x 1 and 128 x 128 by the rule of the recipe block, not "
      "{} in "
      "blocks of {} x {} by another",
      name_of(cast.format), cast.block_rows, cast.block_cols);
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
  }
}

void DeviceBackend::quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                                  const Tensor& counters) {
  if (shape_of(first.cast) != BlockShape::row || shape_of(second.cast) != BlockShape::column)
    return Backend::quantize_both(x, first, second, counters);
  for (const CastTask* task : {&first, &second}) check_block_cast(*this, x, task->cast, counters, task->out);
  launch_block_cast<BlockShape::row, BlockShape::column>(
      x, {sink_of(first.out, counters), sink_of(second.out, counters)},
      packs(x) && packs(first.out.bytes) && packs(second.out.bytes), stream());
}

void DeviceBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  check_dequantize(q, values);
  const BlockScales& blocks = q.blocks;
  require(q.e2m1_cols == 0 && (!blocks.scale_inv || blocks.scale_inv.dtype() == DType::f32),
          "dequantize: the backend {} has e4m3 and e5m2, and f32 scales of blocks", name());
  const std::int64_t elements = values.rows() * values.cols();
  launch("dequantize", widen_blocks, {blocks_for(elements, kTileThreads), kTileThreads}, stream(),
         matrix_of<std::uint8_t>(q.bytes), fp8_of(q.bytes.dtype()), matrix_of<float>(blocks.scale_inv),
         blocks.rows, blocks.cols, matrix_of<bf16>(values), values.rows(), values.cols());
}

}  // namespace quaver::cuda
