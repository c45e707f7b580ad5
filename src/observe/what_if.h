/// What another way of casting would have done to the tensors of a run, from the exponents that were counted.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "observe/health.h"

namespace quaver {

/// Another way to cast a tensor.
struct Alternative {
  std::string name;             ///< as it was written
  std::optional<DType> format;  ///< absent: the tensor's own
  std::optional<int> margin;    ///< absent: the tensor's own
  std::optional<float> scale;   ///< absent: from the newest amax, as delayed scaling does
  int block = 0;  ///< so many numbers share a scale that is read off them; 0: one scale a tensor
};

/// "e4m3", "e5m2", "margin=N", "scale=S", "mxfp8", or several with commas. Throws Error(usage).
std::vector<Alternative> parse_alternatives(const std::string& text);

struct WhatIf {
  ShareBounds saturated, underflowed;  ///< of the numbers that are not zero
  std::optional<ShareBounds>
      if_mixed;     ///< of blocks: underflow where large and small numbers are mixed at random
  float scale = 1;  ///< of one scale a tensor
};

/// `tensor.exponents` must be there. A tensor whose recipe keeps no amax is scaled as if its amax were the end of its
/// highest binade.
WhatIf what_if(const CastTensor& tensor, const Alternative& alternative);

}  // namespace quaver
