/// Softmax cross entropy over rows of logits.
#pragma once

#include "ops/cpu/kernels/rows.h"

namespace quaver::cpu {

/// Columns whose logits and exponentials stay in the nearest caches between two passes.
constexpr std::int64_t kLogitBlock = 2048;

struct CrossEntropyRows {
  ConstRows logits;
  const std::int32_t* targets = nullptr;  ///< [rows]; -1: no target
  float gradient_scale = 0;
  /// [rows], written: log(sum) + largest is the row's logsumexp. Not written for rows without a target.
  float *largest = nullptr, *sum = nullptr;
  bool wants_gradient = false;
  float* exponentials = nullptr;  ///< scratch of one row's columns
  float* shifts = nullptr;        ///< scratch, one for each kLogitBlock of them
};

struct CrossEntropyKernels {
  /// dlogits' values may be the logits' memory.
  void (*rows)(Real real, Extent extent, const CrossEntropyRows& loss, const ProducerRows& dlogits);
};

}  // namespace quaver::cpu
