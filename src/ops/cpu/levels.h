/// Instruction-set levels of the CPU backend: every kernel is compiled once per level, and one level is
/// chosen at run time. Beside the levels stands the matrix unit that some processors have: its products have other bits,
/// so a program must ask for it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace quaver::cpu {

struct AdamWKernels;
struct AttentionKernels;
struct Bf16BlockKernels;
struct BlockCastKernels;
struct CastKernels;
struct CrossEntropyKernels;
struct EmbeddingKernels;
struct GemmKernels;
struct HeadKernels;
struct NormKernels;
struct PeakKernels;
struct PointwiseKernels;
struct ReductionKernels;
struct UnitGemmKernels;

/// All kernels of one level. Each table is declared in kernels/<its concept>.h.
struct Kernels {
  const AdamWKernels* adamw;
  const AttentionKernels* attention;
  const Bf16BlockKernels* bf16_blocks;
  const BlockCastKernels* block_cast;
  const CastKernels* cast;
  const CrossEntropyKernels* cross_entropy;
  const EmbeddingKernels* embedding;
  const GemmKernels* gemm;
  const HeadKernels* heads;
  const NormKernels* norms;
  const PeakKernels* peak;
  const PointwiseKernels* pointwise;
  const ReductionKernels* reductions;
};

/// Products of BF16 and FP8 numbers in the processor's matrix unit; all else is the level's.
struct MatrixUnit {
  std::string_view name;
  const AttentionKernels* attention;        ///< BF16, several queries
  const UnitGemmKernels* gemm;              ///< BF16 and FP8, several rows
  double (*peak)(std::int64_t iterations);  ///< as PeakKernels::bf16
};

/// baseline: what the compiler assumes anyway (x86-64: SSE2). avx2: x86-64-v3. avx512: x86-64-v4 with BF16
/// and VBMI.
enum class Level { baseline, avx2, avx512 };

std::string_view name_of(Level level);

/// The levels of this build that this processor and operating system can run, ascending; never empty.
std::vector<Level> supported_levels();

/// The highest supported level, or the one named by the environment variable QUAVER_ISA. Throws Error(usage)
/// when that names no supported level.
Level choose_level();

/// Whether the dot product of BF16 pairs is one operation of this processor, as a fused one is: AMD's. Intel's take its operands apart by
/// two shuffles, of which they start one wide one a cycle.
bool has_undivided_dot_products();

/// `level` must be one that this build has.
const Kernels& kernels_of(Level level);

/// The unit that goes with `level`, or null: this build, processor or operating system has none. Asks the operating system to let
/// this process use it.
const MatrixUnit* find_matrix_unit(Level level);

}  // namespace quaver::cpu
