#include <cstring>
#include <type_traits>

#include "ops/cuda/tile_map.h"

namespace quaver::cuda {

TileMap make_tile_map(const TileSource& source) {
  static_assert(sizeof(source) <= sizeof(TileMap));
  // A list of operations is recognised by its bytes.
  static_assert(std::has_unique_object_representations_v<TileSource>);
  TileMap map{};
  std::memcpy(&map, &source, sizeof(source));
  return map;
}

}  // namespace quaver::cuda
