#include "base/check.h"
#include "ops/cuda/attention.h"

namespace quaver::cuda {

void check_device_attention(const AttentionShape& shape) {
  constexpr std::int64_t kLargestGrid = 65535;    // heads and sequences are dimensions of a grid
  constexpr std::int64_t kLargestKeys = 1 << 30;  // positions are 32-bit numbers
  require(shape.head_dim <= kWidestHead, "attention: head_dim is {}, expected at most {} on a CUDA device",
          shape.head_dim, kWidestHead);
  require(shape.heads <= kLargestGrid && shape.batch <= kLargestGrid && shape.key_len <= kLargestKeys,
          "attention: {} heads, {} sequences of {} keys, expected at most {}, {} and {} on a CUDA device",
          shape.heads, shape.batch, shape.key_len, kLargestGrid, kLargestGrid, kLargestKeys);
}

}  // namespace quaver::cuda
