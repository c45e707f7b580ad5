/// Blocks of BF16 numbers to FP8 by the kernels of kernels/bf16_blocks.h: the way of nearly all blocks of the recipes whose scales
/// are powers of two.
#pragma once

#include <array>
#include <vector>

#include "ops/cpu/kernels/bf16_blocks.h"
#include "ops/cpu/levels.h"
#include "ops/cpu/ranges.h"
#include "quaver/backend.h"

namespace quaver::cpu {

class Bf16Blocks {
 public:
  /// Whether the level has the kernels, and the cast is one of these.
  static bool take(const Kernels& kernels, const Tensor& x, const OperandCast& cast);

  Bf16Blocks(const Kernels& kernels, int threads, const Tensor& x, const OperandCast& cast,
             const QuantizedTensor& out);

  /// Casts a row of blocks. False, with nothing cast, if one of them is not of this way: a NaN, an infinity, a scale that is no
  /// power of two, a result that saturates.
  bool cast(const Range& rows, const Range& cols, int thread, CodeCounts& counts);

  /// After a thread's tile, before others read its codes.
  void finish() const {
    if (streams_) kernels_.finish();
  }

 private:
  /// What follows from an amax.
  struct Scale {
    std::int32_t amax = -1;  ///< bits of BF16; -1: none yet
    bool fits = false;
    std::uint8_t byte = 0;  ///< scale_inv as stored, unless that is f32
    std::int16_t offset = 0;
    float scale_inv = 0;

    void store(float& to) const { to = scale_inv; }
    void store(std::uint8_t& to) const { to = byte; }
  };
  struct Scratch {
    std::array<Scale, 1024>
        scales;  ///< by the low bits of amax: blocks have few different ones, and a rule divides
    std::vector<std::uint16_t> columns, blocks;
    std::vector<std::int16_t> block_offsets, offsets;
  };

  /// Of each block of the row of blocks, in scratch.blocks.
  void find_amaxes(const Range& rows, const Range& cols, Scratch& scratch) const;
  /// Stores them as T. False: a block is not of this way.
  template <typename T>
  bool store_scales(std::int64_t first, Scratch& scratch) const;
  Scale scale_of(std::uint16_t amax) const;
  const std::uint16_t* row(std::int64_t index, const Range& cols) const;

  const Bf16BlockKernels& kernels_;
  const Tensor& x_;
  const OperandCast& cast_;
  const QuantizedTensor& out_;
  const bool e5m2_, streams_;
  std::vector<Scratch> scratch_;  ///< of each thread
};

}  // namespace quaver::cpu
