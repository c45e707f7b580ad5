/// Where tiles come from: what the host tells Hopper's copy engine about a matrix.
#pragma once

#include <cstdint>

#include "quaver/tensor.h"

namespace quaver::cuda {

constexpr int kPanelColumns = 64;

/// The heads of several sequences in global memory: element (sequence, row, head, column) is
/// data[(sequence * rows + row) * stride + head * head_dim + column]. 16-byte aligned; stride and head_dim are
/// multiples of 8; nothing is empty.
struct TileSource {
  const bf16* data = nullptr;
  std::int64_t stride = 0;
  int head_dim = 0, heads = 0, rows = 0, sequences = 0;
  std::int64_t tile_rows = 0;  ///< of the panels to be copied; of this type: without padding
};

/// A kernel takes it as `const __grid_constant__`; on the device it is a CUtensorMap, in the emulation the source's bytes.
struct alignas(64) TileMap {
  std::uint64_t opaque[16];
};
/// Throws Error(failure) if the driver refuses it.
TileMap make_tile_map(const TileSource& source);

}  // namespace quaver::cuda
