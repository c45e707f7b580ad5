#include <cstring>

#include "ops/cuda/tile_map.h"

namespace quaver::cuda {

TileMap make_tile_map(const TileSource& source) {
  static_assert(sizeof(source) <= sizeof(TileMap));
  TileMap map{};
  std::memcpy(&map, &source, sizeof(source));
  return map;
}

}  // namespace quaver::cuda
