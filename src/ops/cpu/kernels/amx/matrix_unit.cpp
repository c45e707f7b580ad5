#include "ops/cpu/kernels/attention.h"
#include "ops/cpu/kernels/tiles.h"
#include "ops/cpu/kernels/unit_gemm.h"
#include "ops/cpu/levels.h"

namespace quaver::cpu::amx {
namespace {

double peak(std::int64_t iterations) {
  constexpr int kProducts = 4;  // as in multiply_tiles, whose sums do not wait for each other
  const TileScope tiles;
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
  clear_tile<4>();
  clear_tile<5>();
  clear_tile<6>();
  clear_tile<7>();
  for (std::int64_t i = 0; i < iterations; ++i) {
    multiply_tile_pairs<0, 4, 6>();
    multiply_tile_pairs<2, 5, 6>();
    multiply_tile_pairs<1, 4, 7>();
    multiply_tile_pairs<3, 5, 7>();
  }
  return 2.0 * kProducts * static_cast<double>(kTileRows * kTileRows * 2 * kTileSteps) *
         static_cast<double>(iterations);
}

}  // namespace

extern const MatrixUnit matrix_unit;
const MatrixUnit matrix_unit = {
    .name = "amx",
    .attention = &attention_kernels,
    .gemm = &gemm_kernels,
    .peak = peak,
};

}  // namespace quaver::cpu::amx
