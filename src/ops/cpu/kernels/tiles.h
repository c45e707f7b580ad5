/// The processor's matrix unit (Intel AMX with BF16): tiles of 16 rows and 64 bytes, and their products.
///
/// Tiles 0 to 3 are sums: of rows [0, 16) and [16, 32), each with columns [0, 16) and [16, 32). 4 and 5 hold the rows' next 32 steps,
/// 6 and 7 the columns'. A product of tiles takes 16 cycles, a load from the inner caches 8: with four products for four loads
/// the unit never waits for them. One product adds, to every sum, the sum of its 16 even products and that of its 16 odd ones,
/// each from zero and in ascending order; denormals count as zero and become zero. Which half of a unit is even does not
/// matter: both sums are added.
///
/// For kernel files only: everything is in an anonymous namespace of the level. Tile instructions are assembly because
/// g++'s intrinsics for loads do not say that they read memory.
#pragma once

#include <cstdint>

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr std::int64_t kTileRows = 16, kTileSteps = 16;  ///< steps of two BF16 numbers

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kWholeTiles;

/// While it lives, the thread may use tiles. Afterwards it has no tiles that the system would have to save.
class TileScope {
 public:
  TileScope() { asm volatile("ldtilecfg %0" : : "m"(kWholeTiles)); }
  ~TileScope() { asm volatile("tilerelease"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int Tile>
[[gnu::always_inline]] inline void load_tile(const float* from, std::int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride_bytes), "i"(Tile) : "memory");
}
template <int Tile>
[[gnu::always_inline]] inline void store_tile(float* to, std::int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride_bytes), "i"(Tile) : "memory");
}
template <int Tile>
[[gnu::always_inline]] inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Sum, int Rows, int Columns>
[[gnu::always_inline]] inline void multiply_tile_pairs() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Rows), "i"(Columns));
}

/// Units of 4 bytes, `stride` of them from a row to the next.
struct TileMatrix {
  const float* data;
  std::int64_t stride;
};

constexpr std::int64_t kTileUnits = kTileRows * kTileSteps;

/// sums[r * stride + c] = carried (or 0 if its data are null) + product over `steps` steps, a multiple of kTileSteps, of
/// 16 RowTiles rows, which stand one after the other, and 16 ColumnTiles columns: whole tiles, those of the same steps side by side.
template <int RowTiles, int ColumnTiles>
[[gnu::noinline]] void multiply_tiles(TileMatrix a, const float* columns, std::int64_t steps,
                                      TileMatrix carried, float* sums, std::int64_t stride) {
  constexpr bool kTwoRows = RowTiles == 2, kTwoColumns = ColumnTiles == 2;
  constexpr std::int64_t kTileBytes = 4 * kTileSteps;  // of a row of a tile of columns
  const std::int64_t carried_bytes = 4 * carried.stride, sum_bytes = 4 * stride;
  if (carried.data) {
    const float* const lower_rows = carried.data + kTileRows * carried.stride;
    load_tile<0>(carried.data, carried_bytes);
    if (kTwoColumns) load_tile<1>(carried.data + kTileRows, carried_bytes);
    if (kTwoRows) load_tile<2>(lower_rows, carried_bytes);
    if (kTwoRows && kTwoColumns) load_tile<3>(lower_rows + kTileRows, carried_bytes);
  } else {
    clear_tile<0>();
    if (kTwoColumns) clear_tile<1>();
    if (kTwoRows) clear_tile<2>();
    if (kTwoRows && kTwoColumns) clear_tile<3>();
  }
  const std::int64_t a_bytes = 4 * a.stride;
  const float* rows = a.data;
  for (std::int64_t step = 0; step < steps; step += kTileSteps) {
    load_tile<6>(columns, kTileBytes);
    load_tile<4>(rows, a_bytes);
    multiply_tile_pairs<0, 4, 6>();
    if (kTwoRows) {
      load_tile<5>(rows + kTileRows * a.stride, a_bytes);
      multiply_tile_pairs<2, 5, 6>();
    }
    if (kTwoColumns) {
      load_tile<7>(columns + kTileUnits, kTileBytes);
      multiply_tile_pairs<1, 4, 7>();
    }
    if (kTwoRows && kTwoColumns) multiply_tile_pairs<3, 5, 7>();
    rows += kTileSteps;
    columns += ColumnTiles * kTileUnits;
  }
  store_tile<0>(sums, sum_bytes);
  if (kTwoColumns) store_tile<1>(sums + kTileRows, sum_bytes);
  if (kTwoRows) store_tile<2>(sums + kTileRows * stride, sum_bytes);
  if (kTwoRows && kTwoColumns) store_tile<3>(sums + kTileRows * stride + kTileRows, sum_bytes);
}

/// The same for `rows` rows (32 at most count) and one or two vectors of columns.
inline void multiply_tiles(std::int64_t rows, int vectors, TileMatrix a, const float* columns,
                           std::int64_t steps, TileMatrix carried, float* sums, std::int64_t stride) {
  if (rows > kTileRows) {
    return vectors == 2 ? multiply_tiles<2, 2>(a, columns, steps, carried, sums, stride)
                        : multiply_tiles<2, 1>(a, columns, steps, carried, sums, stride);
  }
  return vectors == 2 ? multiply_tiles<1, 2>(a, columns, steps, carried, sums, stride)
                      : multiply_tiles<1, 1>(a, columns, steps, carried, sums, stride);
}

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
