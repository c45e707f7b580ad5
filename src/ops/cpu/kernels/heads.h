/// Norm and rotary embedding of every head of q or k.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

enum class HeadNorm { none, before_rotation, after_rotation };

struct HeadLayout {
  std::int64_t heads = 0, head_dim = 0;
  HeadNorm norm = HeadNorm::none;
  float epsilon = 0;
  const float* gain = nullptr;                     ///< [head_dim], with a norm
  std::int64_t half = 0;                           ///< pairs that are turned; 0: no rotation
  const float *cosine = nullptr, *sine = nullptr;  ///< [positions, half]
  const std::int32_t* positions = nullptr;         ///< [rows] of the tables, with a rotation
  std::int64_t untouched = 0;                      ///< heads behind those, in backward
};

/// Heads of a row that the kernels hold at once.
constexpr std::int64_t kHeadsAtOnce = 16;

struct HeadKernels {
  /// `scratch`: kHeadsAtOnce * head_dim floats.
  void (*forward)(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows x, Rows out,
                  float* scratch);
  /// dgain [head_dim] is overwritten with these rows' sum (with a norm; else it and x may be null). `row`: a row of dx, where dx has
  /// bytes.
  void (*backward)(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows dout, ConstRows x,
                   const ProducerRows& dx, float* dgain, float* scratch, void* row);
};

}  // namespace quaver::cpu
