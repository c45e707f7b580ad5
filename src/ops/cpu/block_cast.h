/// Casts whose scales are read off the tensor (Backend::quantize), in tiles of whole blocks.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "ops/cpu/bf16_blocks.h"
#include "ops/cpu/kernels/block_cast.h"
#include "ops/cpu/levels.h"
#include "ops/cpu/ranges.h"
#include "quaver/backend.h"

namespace quaver::cpu {

/// A matrix in bands of whole blocks of rows by tiles of whole blocks of columns: what one thread casts at a time. The cut
/// depends on the shapes alone.
struct Cut {
  Cut(std::int64_t matrix_rows, std::int64_t matrix_cols, std::int64_t block_rows, std::int64_t block_cols);

  std::int64_t count() const { return ceil_div(rows, band_rows) * tiles; }
  Range rows_of(std::int64_t index) const;
  Range cols_of(std::int64_t index) const;

  std::int64_t rows, cols, band_rows, tile_cols, tiles;
};

/// One cast. The arguments must outlive it.
class BlockCast {
 public:
  BlockCast(Backend& backend, const Threads& threads, const Kernels& kernels, const Tensor& x,
            const OperandCast& cast, const CastNoise& noise, const QuantizedTensor& out);

  CodeCounts run();

  /// Whether tiles of the two casts of x can be cast in turns.
  static bool can_alternate(const Kernels& kernels, const Tensor& x, const OperandCast& first,
                            const OperandCast& second);
  /// Runs both, which is then possible, reading x once; what each counted.
  static std::array<CodeCounts, 2> run_both(BlockCast& first, BlockCast& second);

 private:
  struct Statistics {
    float amax = 0;
    bool nan = false;
  };

  void prepare();
  void widen(std::int64_t row, const Range& cols, float* to) const;
  void turn_by_hadamard();
  float tensor_amax() const;
  void raise(const Range& rows, const Range& cols, float* x, std::uint32_t* bits) const;
  Statistics statistics_of(const Range& rows, const Range& cols) const;
  /// From the largest magnitude bits of each column; where one is a NaN's, the numbers are looked at again.
  Statistics statistics_of(const Range& rows, const Range& cols, const std::uint32_t* bits) const;
  /// Rows of whole blocks.
  void cast_tile(const Range& rows, const Range& cols, int thread, CodeCounts& counts);
  void cast_any(const Range& rows, const Range& cols, CodeCounts& counts) const;
  /// The scales of a row of blocks, and the multiplier of each column.
  void scale_blocks(const Range& rows, const Range& cols, const std::uint32_t* bits, float* multiplier) const;
  void store_row(std::int64_t row, const Range& cols, const float* x, const float* multiplier,
                 const float* uniform, std::vector<std::uint8_t>& codes, CodeCounts& counts) const;

  Backend& backend_;
  const Threads& threads_;
  const BlockCastKernels& kernels_;
  Tensor x_;
  const OperandCast& cast_;
  const CastNoise& noise_;
  const QuantizedTensor& out_;
  std::int64_t block_rows_, block_cols_;
  CodeFormat format_;
  float tensor_scale_ = 1;
  std::optional<Bf16Blocks> bf16_;  ///< where it takes the cast
};

}  // namespace quaver::cpu
