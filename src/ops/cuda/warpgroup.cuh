/// Products of warpgroups (4 warps that start at a multiple of 4): wgmma of sm_90a. They run on their own until
/// somebody waits for them; until then their accumulators, and operands in registers, belong to them. A warp of a
/// warpgroup holds rows 16 w to 16 w + 15 of a product's 64, as Accumulators<1, ...> do.
///
/// Kernels that use this are empty where they are compiled for another chip (kChipHasWarpgroups); nothing launches
/// them there.
#pragma once

#include "ops/cuda/attention_tile.cuh"
#include "ops/cuda/tile_copy.cuh"

namespace quaver::cuda {

constexpr int kWarpgroupThreads = 128;

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kChipHasWarpgroups = false;
#else
constexpr bool kChipHasWarpgroups = true;
#endif

/// Rows of a tile in shared memory (tile_copy.cuh), as an operand.
struct SharedRows {
  const bf16* data = nullptr;  ///< of the first row, a multiple of 8 of the tile
  int tile_rows = 0;
};

#ifdef __CUDACC__

/// What a product reads from byte `offset` on: panels lie 64 columns apart, groups of 8 rows 1024 bytes.
__device__ inline std::uint64_t operand_at(const SharedRows& rows, int offset) {
  constexpr std::uint64_t kSwizzle128 = 1ull << 62, kGroupBytes = 8 * kPanelRowBytes;
  const std::uint64_t panel_bytes = static_cast<std::uint64_t>(rows.tile_rows) * kPanelRowBytes;
  return ((shared_address(rows.data) + offset) >> 4 & 0x3FFF) | panel_bytes >> 4 << 16 |
         kGroupBytes >> 4 << 32 | kSwizzle128;
}

/// sum = a b^T, or += if `add`: 64 rows of a, 64 rows of b, 16 columns of both.
__device__ inline void start_multiply(float (&sum)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, %32, %33, add, 1, 1, 0, 0;\n}"
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
        "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(sum[2][0]), "+f"(sum[2][1]), "+f"(sum[2][2]), "+f"(sum[2][3]),
        "+f"(sum[3][0]), "+f"(sum[3][1]), "+f"(sum[3][2]), "+f"(sum[3][3]), "+f"(sum[4][0]), "+f"(sum[4][1]),
        "+f"(sum[4][2]), "+f"(sum[4][3]), "+f"(sum[5][0]), "+f"(sum[5][1]), "+f"(sum[5][2]), "+f"(sum[5][3]),
        "+f"(sum[6][0]), "+f"(sum[6][1]), "+f"(sum[6][2]), "+f"(sum[6][3]), "+f"(sum[7][0]), "+f"(sum[7][1]),
        "+f"(sum[7][2]), "+f"(sum[7][3])
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

/// sum += a b: a is the warps' 64 x 16 (as multiply_add holds it), b 16 rows of 64 columns.
__device__ inline void start_multiply(float (&sum)[8][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
        "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(sum[2][0]), "+f"(sum[2][1]), "+f"(sum[2][2]), "+f"(sum[2][3]),
        "+f"(sum[3][0]), "+f"(sum[3][1]), "+f"(sum[3][2]), "+f"(sum[3][3]), "+f"(sum[4][0]), "+f"(sum[4][1]),
        "+f"(sum[4][2]), "+f"(sum[4][3]), "+f"(sum[5][0]), "+f"(sum[5][1]), "+f"(sum[5][2]), "+f"(sum[5][3]),
        "+f"(sum[6][0]), "+f"(sum[6][1]), "+f"(sum[6][2]), "+f"(sum[6][3]), "+f"(sum[7][0]), "+f"(sum[7][1]),
        "+f"(sum[7][2]), "+f"(sum[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// sum = a b^T, or += if `add`: 64 rows of a, 128 rows of b, 16 columns of both.
__device__ inline void start_multiply(float (&sum)[16][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, add, 1, 1, 0, 0;\n}"
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
        "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(sum[2][0]), "+f"(sum[2][1]), "+f"(sum[2][2]), "+f"(sum[2][3]),
        "+f"(sum[3][0]), "+f"(sum[3][1]), "+f"(sum[3][2]), "+f"(sum[3][3]), "+f"(sum[4][0]), "+f"(sum[4][1]),
        "+f"(sum[4][2]), "+f"(sum[4][3]), "+f"(sum[5][0]), "+f"(sum[5][1]), "+f"(sum[5][2]), "+f"(sum[5][3]),
        "+f"(sum[6][0]), "+f"(sum[6][1]), "+f"(sum[6][2]), "+f"(sum[6][3]), "+f"(sum[7][0]), "+f"(sum[7][1]),
        "+f"(sum[7][2]), "+f"(sum[7][3]), "+f"(sum[8][0]), "+f"(sum[8][1]), "+f"(sum[8][2]), "+f"(sum[8][3]),
        "+f"(sum[9][0]), "+f"(sum[9][1]), "+f"(sum[9][2]), "+f"(sum[9][3]), "+f"(sum[10][0]),
        "+f"(sum[10][1]), "+f"(sum[10][2]), "+f"(sum[10][3]), "+f"(sum[11][0]), "+f"(sum[11][1]),
        "+f"(sum[11][2]), "+f"(sum[11][3]), "+f"(sum[12][0]), "+f"(sum[12][1]), "+f"(sum[12][2]),
        "+f"(sum[12][3]), "+f"(sum[13][0]), "+f"(sum[13][1]), "+f"(sum[13][2]), "+f"(sum[13][3]),
        "+f"(sum[14][0]), "+f"(sum[14][1]), "+f"(sum[14][2]), "+f"(sum[14][3]), "+f"(sum[15][0]),
        "+f"(sum[15][1]), "+f"(sum[15][2]), "+f"(sum[15][3])
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

/// sum += a b: a is the warps' 64 x 16 (as multiply_add holds it), b 16 rows of 128 columns.
__device__ inline void start_multiply(float (&sum)[16][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
      "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, "
      "1;"
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), "+f"(sum[1][1]),
        "+f"(sum[1][2]), "+f"(sum[1][3]), "+f"(sum[2][0]), "+f"(sum[2][1]), "+f"(sum[2][2]), "+f"(sum[2][3]),
        "+f"(sum[3][0]), "+f"(sum[3][1]), "+f"(sum[3][2]), "+f"(sum[3][3]), "+f"(sum[4][0]), "+f"(sum[4][1]),
        "+f"(sum[4][2]), "+f"(sum[4][3]), "+f"(sum[5][0]), "+f"(sum[5][1]), "+f"(sum[5][2]), "+f"(sum[5][3]),
        "+f"(sum[6][0]), "+f"(sum[6][1]), "+f"(sum[6][2]), "+f"(sum[6][3]), "+f"(sum[7][0]), "+f"(sum[7][1]),
        "+f"(sum[7][2]), "+f"(sum[7][3]), "+f"(sum[8][0]), "+f"(sum[8][1]), "+f"(sum[8][2]), "+f"(sum[8][3]),
        "+f"(sum[9][0]), "+f"(sum[9][1]), "+f"(sum[9][2]), "+f"(sum[9][3]), "+f"(sum[10][0]),
        "+f"(sum[10][1]), "+f"(sum[10][2]), "+f"(sum[10][3]), "+f"(sum[11][0]), "+f"(sum[11][1]),
        "+f"(sum[11][2]), "+f"(sum[11][3]), "+f"(sum[12][0]), "+f"(sum[12][1]), "+f"(sum[12][2]),
        "+f"(sum[12][3]), "+f"(sum[13][0]), "+f"(sum[13][1]), "+f"(sum[13][2]), "+f"(sum[13][3]),
        "+f"(sum[14][0]), "+f"(sum[14][1]), "+f"(sum[14][2]), "+f"(sum[14][3]), "+f"(sum[15][0]),
        "+f"(sum[15][1]), "+f"(sum[15][2]), "+f"(sum[15][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// Before the first product that reads registers which were written since the last.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// Products started since the last call become one group.
__device__ inline void end_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until all groups but the last kRunning have ended.
template <int kRunning>
__device__ void wait_for_groups() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kRunning) : "memory");
}
/// Gives up registers, or takes them, so that each of the warpgroup's threads has kRegisters.
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// The compiler takes these for changed: what reads them stays behind the wait before this call.
template <int kColumns>
__device__ void products_have_ended(Accumulators<1, kColumns>& sum) {
  for_elements(sum, [](int, int, int, float& x) { asm volatile("" : "+f"(x)::"memory"); });
}

#else

/// An address from which the emulated products compute those of elements.
struct SharedOperand {
  const unsigned char* start;
  int panel_bytes;

  /// Element `column` of row `row` of panels that lie panel_bytes apart, counted from the start.
  float element(int row, int column) const {
    const auto at = reinterpret_cast<std::uintptr_t>(start) + column / kPanelColumns * panel_bytes +
                    row * kPanelRowBytes + column % kPanelColumns * 2;
    bf16 found;
    std::memcpy(&found, reinterpret_cast<const void*>(at ^ (at >> 3 & 0x70)), sizeof(found));
    return as_float(found);
  }
};

__device__ inline SharedOperand operand_at(const SharedRows& rows, int offset) {
  return {reinterpret_cast<const unsigned char*>(rows.data) + offset, rows.tile_rows * kPanelRowBytes};
}

template <int kPieces>
__device__ void start_multiply(float (&sum)[kPieces][4], const SharedOperand& a, const SharedOperand& b,
                               bool add) {
  const int lane = emulation::lane(), first_row = threadIdx.x % kWarpgroupThreads / 32 * 16;
  for (int j = 0; j < kPieces; ++j) {
    for (int e = 0; e < 4; ++e) {
      const int row = first_row + row_in_piece(lane, e), column = 8 * j + column_in_piece(lane, e);
      float total = add ? sum[j][e] : 0;
      for (int k = 0; k < 16; ++k) total += a.element(row, k) * b.element(column, k);
      sum[j][e] = total;
    }
  }
}
template <int kPieces>
__device__ void start_multiply(float (&sum)[kPieces][4], const std::uint32_t (&a)[4],
                               const SharedOperand& b) {
  const int lane = emulation::lane(), row = lane / 4;
  emulation::with_warp(ProductOperands{{a[0], a[1], a[2], a[3]}, {}}, [&](const auto* lanes) {
    for (int j = 0; j < kPieces; ++j) {
      for (int e = 0; e < 4; ++e) {
        for (int k = 0; k < 16; ++k) {
          sum[j][e] += half_of(lanes[4 * row + k % 8 / 2]->a[e / 2 + k / 8 * 2], k % 2) *
                       b.element(k, 8 * j + column_in_piece(lane, e));
        }
      }
    }
    return 0;
  });
}
__device__ inline void begin_products() {}
__device__ inline void end_group() {}
template <int>
__device__ void wait_for_groups() {}
template <int>
__device__ void give_registers() {}
template <int>
__device__ void take_registers() {}
template <int kColumns>
__device__ void products_have_ended(Accumulators<1, kColumns>&) {}

#endif

/// Starts sum = a b^T, the contraction over kWidth columns of both: 64 rows of a, 8 * kColumns rows of b.
template <int kWidth, int kColumns>
__device__ void start_multiply_transposed(Accumulators<1, kColumns>& sum, const SharedRows& a,
                                          const SharedRows& b) {
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    const int panel = k / kPanelColumns, column_bytes = k % kPanelColumns * 2;
    start_multiply(sum.at[0], operand_at(a, panel * a.tile_rows * kPanelRowBytes + column_bytes),
                   operand_at(b, panel * b.tile_rows * kPanelRowBytes + column_bytes), k > 0);
  }
}

/// Accumulators rounded to BF16, as left operands of products over their columns.
template <int kColumns>
struct PackedRows {
  std::uint32_t at[kColumns / 2][4];

  /// Element e of piece j, as of Accumulators.
  __device__ float element(int j, int e) const {
    const std::uint32_t pair = at[j / 2][j % 2 * 2 + e / 2];
    return __uint_as_float(e % 2 == 0 ? pair << 16 : pair & 0xFFFF0000u);
  }
  __device__ void pack(const Accumulators<1, kColumns>& from) {
#pragma unroll
    for (int k = 0; k < kColumns; k += 2) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float* pair = from.at[0][k + part / 2] + part % 2 * 2;
        at[k / 2][part] = pack_pair(pair[0], pair[1]);
      }
    }
  }
};

/// Starts sum += p b: p's columns are rows of b.
template <int kWidth, int kColumns>
__device__ void start_multiply_packed(Accumulators<1, kWidth / 8>& sum, const PackedRows<kColumns>& p,
                                      const SharedRows& b) {
#pragma unroll
  for (int k = 0; k < kColumns / 2; ++k) {
    start_multiply(sum.at[0], p.at[k], operand_at(b, 16 * k * kPanelRowBytes));
  }
}

}  // namespace quaver::cuda
