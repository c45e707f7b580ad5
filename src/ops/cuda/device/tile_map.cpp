#include <cuda.h>
#include <cuda_runtime_api.h>

#include <bit>

#include "base/check.h"
#include "ops/cuda/device/errors.h"
#include "ops/cuda/tile_map.h"

namespace quaver::cuda {
namespace {

/// The driver's function, through the runtime: the program is not linked with the driver's library.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
      "looking for cuTensorMapEncodeTiled");
  require(found == cudaDriverEntryPointSuccess, "cuda: the driver has no cuTensorMapEncodeTiled; update it");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

TileMap make_tile_map(const TileSource& source) {
  static const auto encode = find_encoder();
  constexpr std::uint32_t kRank = 4;
  const auto row_bytes = static_cast<std::uint64_t>(source.stride) * sizeof(bf16);
  const std::uint64_t sizes[kRank] = {
      static_cast<std::uint64_t>(source.head_dim), static_cast<std::uint64_t>(source.heads),
      static_cast<std::uint64_t>(source.rows), static_cast<std::uint64_t>(source.sequences)};
  const std::uint64_t strides[kRank - 1] = {sizes[0] * sizeof(bf16), row_bytes, row_bytes * sizes[2]};
  const std::uint32_t box[kRank] = {kPanelColumns, 1, static_cast<std::uint32_t>(source.tile_rows), 1};
  const std::uint32_t steps[kRank] = {1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<bf16*>(source.data), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(
      status == CUDA_SUCCESS,
      "cuda: the driver refused a map of {} sequences of {} rows, {} apart, with {} heads of {} (error {})",
      source.sequences, source.rows, source.stride, source.heads, source.head_dim, static_cast<int>(status));
  return std::bit_cast<TileMap>(map);
}

}  // namespace quaver::cuda
